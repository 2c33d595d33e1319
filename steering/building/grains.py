"""GrAInS: the shift of the residual stream when the tokens that speak for an answer are taken out.

Source: GrAInS, arXiv 2507.18043, section 3. Readings of it, by whose tokens are scored:
- `shared`, the paper's text: the prompt's, by the difference of both answers' log-probabilities;
- `authors`, the authors' code: prompt and answer, by the log-probability of the answer's last token;
- `response`: each answer's, by its log-probability;
- `demonstration`: each answer's, by how much likelier it makes another pair's preferred answer than its
  dispreferred one, when it stands in the conversation as an example;
- `direction`: each answer's, by how far it turns a block's output along the other pairs' mean difference.
What differs from the paper by default is what measurement asked for, see docs/evidence.md; PAPER differs
in nothing.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor

from steering.building.ablation import BASELINES, FILLS, ablate, strongest
from steering.building.activations import mean_activations
from steering.building.attribution import (
    Attribution,
    AttributionOptions,
    ablatable,
    attribute_answer,
    attribute_demonstration,
    attribute_direction,
    attribute_prompt,
    attribute_sequence,
)
from steering.building.memo import Memo
from steering.building.pairs import Pair, TokenSequence, tokenise_demonstration, tokenise_pairs
from steering.building.progress import Progress, silent, tracked
from steering.building.token_texts import token_texts
from steering.errors import InvalidPairs
from steering.loading import LoadedModel

# Share of the blocks below the one whose activations the reading `direction` looks at.
SCORED_DEPTH = 0.6

Reading = Literal["shared", "authors", "response", "demonstration", "direction"]
Summary = Literal["mean", "component", "unsigned_component"]


@dataclass(frozen=True, slots=True)
class GrainsOptions:
    """How directions are found.

    reading: whose tokens are scored, by what. last_token: the objective is the answers' last token alone
    (readings `shared` and `response`). baseline: where the attribution starts; ablation: what stands in for
    a token that is taken out. tokens: how many are taken out at most. read: the activations compared, a mean
    over the answer or the last token's. summary: of the pairs' shifts. control: random tokens are taken out
    instead, as many. block: whose activations the reading `direction` looks at; None: at SCORED_DEPTH.
    """

    reading: Reading = "response"
    last_token: bool = False
    attribution: AttributionOptions = field(default_factory=AttributionOptions)
    baseline: Literal["mean", "zero", "pad"] = "mean"
    ablation: Literal["mean", "zero", "pad", "mask"] = "mean"
    tokens: int = 10
    read: Literal["answer", "last_token"] = "answer"
    summary: Summary = "mean"
    control: bool = False
    block: int | None = None
    seed: int = 0


# The paper's own settings; its 20 steps are of one rule, with no check of completeness.
PAPER = GrainsOptions(
    reading="shared",
    attribution=AttributionOptions(steps=20, tolerance=float("inf")),
    baseline="zero",
    ablation="pad",
    tokens=10,
    read="last_token",
    summary="component",
)
PRESETS = {"default": GrainsOptions(), "paper": PAPER}


@dataclass(frozen=True, slots=True)
class Scored:
    """A sequence, its tokens' scores from position `first` on, and the positions that are taken out.

    gap: the completeness gap of the scores; steps: the gradients that they took.
    """

    sequence: TokenSequence
    first: int
    scores: tuple[float, ...]
    gap: float
    steps: int
    taken: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contrast:
    """One pair's sides: what speaks for the behaviour and what speaks against it."""

    towards: Scored
    away: Scored


CONTRAST = TypeAdapter(Contrast)


@dataclass(frozen=True, slots=True, eq=False)
class Grains:
    """vectors: float32 [layers, hidden_size]; contrasts: one a pair, in order."""

    vectors: Tensor
    contrasts: tuple[Contrast, ...]

    @property
    def gaps(self) -> tuple[float, ...]:
        """The completeness gaps of all attributions."""
        return tuple(side.gap for each in self.contrasts for side in (each.towards, each.away))


def grains(
    loaded: LoadedModel,
    pairs: Sequence[Pair],
    options: GrainsOptions = GrainsOptions(),
    progress: Progress = silent,
    memo: Memo = Memo(),
) -> Grains:
    """Return v = v_pos - v_neg at every block's output, and what it was made of.

    memo: keeps each pair's attribution.

    Raises InvalidPairs when most attributions miss the tolerance even with the most steps.
    """
    scorer = Scorer(loaded, pairs, options)
    numbers = range(len(pairs))
    contrasts = [
        CONTRAST.validate_python(memo.recall(f"attribution {number}", partial(scorer.told_contrast, number)))
        for number in tracked(numbers, "attribution", progress)
    ]
    vectors = contrast_vectors(loaded, contrasts, options, progress)
    found = Grains(vectors, tuple(contrasts))
    refuse_unfinished(found.gaps, options.attribution)
    return found


def refuse_unfinished(gaps: Sequence[float], options: AttributionOptions) -> None:
    """Raise InvalidPairs if attributions that should add up mostly do not."""
    if options.method in ("integrated", "expected") and options.tolerance < float("inf"):
        missed = sum(gap > options.tolerance for gap in gaps)
        if 2 * missed > len(gaps):
            raise InvalidPairs(
                f"{missed} of {len(gaps)} attributions miss the completeness tolerance of "
                f"{options.tolerance:g} after {options.most_steps} steps; allow more, or another baseline"
            )


class Scorer:
    """Scores the tokens of pairs and says which are taken out."""

    def __init__(self, loaded: LoadedModel, pairs: Sequence[Pair], options: GrainsOptions) -> None:
        self._loaded = loaded
        self._pairs = pairs
        self._tokenised = tokenise_pairs(loaded, pairs)
        self._options = options
        self._baseline = BASELINES[options.baseline](loaded)

    def contrast(self, number: int) -> Contrast:
        return READINGS[self._options.reading](self, number)

    def told_contrast(self, number: int) -> Any:
        return CONTRAST.dump_python(self.contrast(number), mode="json")

    def by_prompt(self, number: int) -> Contrast:
        """Take out of the prompt the tokens that speak most for, and most against, the preferred answer."""
        pair, options = self._tokenised[number], self._options
        whole = TokenSequence(pair.prompt, len(pair.prompt) - 1)
        found = self._found(
            pair.prompt,
            lambda: attribute_prompt(
                self._loaded, pair, self._baseline, options.attribution, options.last_token
            ),
        )
        places = ablatable(self._loaded, pair.prompt)
        towards, away = (self._scored(whole, 0, found, places, sign) for sign in (1.0, -1.0))
        return Contrast(towards, away)

    def by_sequence(self, number: int) -> Contrast:
        """Take out of prompt and answer the tokens that speak most for the answer's last one."""

        def scored(sequence: TokenSequence) -> Scored:
            found = self._found(
                sequence.ids,
                lambda: attribute_sequence(self._loaded, sequence, self._baseline, self._options.attribution),
            )
            return self._scored(sequence, 0, found, ablatable(self._loaded, sequence.ids), 1.0)

        pair = self._tokenised[number]
        return Contrast(scored(pair.preferred), scored(pair.dispreferred))

    def by_answer(self, number: int) -> Contrast:
        """Take out of each answer the tokens that speak most for it."""
        options = self._options

        def scored(sequence: TokenSequence) -> Scored:
            found = self._found(
                sequence.ids[sequence.start :],
                lambda: attribute_answer(
                    self._loaded, sequence, self._baseline, options.attribution, options.last_token
                ),
            )
            return self._scored(sequence, sequence.start, found, range(len(found.scores)), 1.0)

        pair = self._tokenised[number]
        return Contrast(scored(pair.preferred), scored(pair.dispreferred))

    def by_demonstration(self, number: int) -> Contrast:
        """Take out of each answer the tokens that most move the next pair's answers its way."""
        following = self._pairs[(number + 1) % len(self._pairs)]

        def scored(sequence: TokenSequence, answer: str, sign: float) -> Scored:
            continued, place = tokenise_demonstration(self._loaded, self._pairs[number], answer, following)
            found = self._found(
                sequence.ids[sequence.start :],
                lambda: attribute_demonstration(
                    self._loaded, continued, place, self._baseline, self._options.attribution
                ),
            )
            return self._scored(sequence, sequence.start, found, range(len(found.scores)), sign)

        pair, tokenised = self._pairs[number], self._tokenised[number]
        return Contrast(
            scored(tokenised.preferred, pair.preferred, 1.0),
            scored(tokenised.dispreferred, pair.dispreferred, -1.0),
        )

    def by_direction(self, number: int) -> Contrast:
        """Take out of each answer the tokens that most turn the activations its way."""
        direction = self._differences.sum(0) - self._differences[number]

        def scored(sequence: TokenSequence, sign: float) -> Scored:
            found = self._found(
                sequence.ids[sequence.start :],
                lambda: attribute_direction(
                    self._loaded, sequence, self._block, direction, self._baseline, self._options.attribution
                ),
            )
            return self._scored(sequence, sequence.start, found, range(len(found.scores)), sign)

        pair = self._tokenised[number]
        return Contrast(scored(pair.preferred, 1.0), scored(pair.dispreferred, -1.0))

    @property
    def _block(self) -> int:
        chosen = self._options.block
        return int(SCORED_DEPTH * len(self._loaded.blocks)) if chosen is None else chosen

    @cached_property
    def _differences(self) -> Tensor:
        """Each pair's difference of mean activations at the scored block, [pairs, hidden_size]."""
        towards = mean_activations(self._loaded, [pair.preferred for pair in self._tokenised])
        away = mean_activations(self._loaded, [pair.dispreferred for pair in self._tokenised])
        return (towards - away)[self._block]

    def _found(self, tokens: Sequence[int], attribute: Callable[[], Attribution]) -> Attribution:
        """Return the tokens' attribution; the control, which takes out whatever, needs none."""
        return Attribution(torch.zeros(len(tokens)), 0.0, 0.0, 0) if self._options.control else attribute()

    def _scored(
        self, sequence: TokenSequence, first: int, found: Attribution, places: Sequence[int], sign: float
    ) -> Scored:
        """Choose among places, counted from `first`, those with the highest signed scores."""
        if self._options.control:
            drawn = random.Random(f"{self._options.seed} {sign} {sequence.ids}")
            taken = drawn.sample(places, min(self._options.tokens, len(places)))
        else:
            taken = strongest(sign * found.scores, places, self._options.tokens)
        positions = tuple(sorted(first + place for place in taken))
        return Scored(sequence, first, tuple(found.scores.tolist()), found.gap, found.steps, positions)


READINGS: dict[str, Callable[[Scorer, int], Contrast]] = {
    "shared": Scorer.by_prompt,
    "authors": Scorer.by_sequence,
    "response": Scorer.by_answer,
    "demonstration": Scorer.by_demonstration,
    "direction": Scorer.by_direction,
}


def contrast_vectors(
    loaded: LoadedModel, contrasts: Sequence[Contrast], options: GrainsOptions, progress: Progress = silent
) -> Tensor:
    """Return v_pos - v_neg, float32 [layers, hidden_size]."""
    towards = [sides(contrast.towards, options) for contrast in contrasts]
    away = [sides(contrast.away, options) for contrast in contrasts]
    fill = FILLS[options.ablation](loaded)
    positive, negative = shifts(loaded, towards + away, fill, progress).split(len(contrasts), dim=1)
    summarise = SUMMARIES[options.summary]
    return torch.stack([summarise(p) - summarise(n) for p, n in zip(positive, negative, strict=True)])


def sides(scored: Scored, options: GrainsOptions) -> tuple[TokenSequence, TokenSequence]:
    """Return the sequence whole and with its telling tokens taken out, with what is read of both."""
    whole = scored.sequence
    if options.read == "last_token":
        whole = TokenSequence(whole.ids, len(whole.ids) - 1)
    return whole, ablate(whole, scored.taken)


def shifts(
    loaded: LoadedModel,
    sides: Sequence[tuple[TokenSequence, TokenSequence]],
    fill: Tensor | None,
    progress: Progress = silent,
) -> Tensor:
    """Return h(whole) - h(ablated), float32 [layers, sides, hidden_size]."""
    sequences = [whole for whole, _ in sides] + [ablated for _, ablated in sides]
    whole, ablated = mean_activations(loaded, sequences, fill, progress).split(len(sides), dim=1)
    return whole - ablated


def mean_row(rows: Tensor) -> Tensor:
    return rows.mean(0)


def unsigned_component(rows: Tensor) -> Tensor:
    """Return the first principal component of rows [n, hidden_size], of length 1, with whatever sign."""
    centred = rows - rows.mean(0)
    return torch.linalg.svd(centred.double(), full_matrices=False).Vh[0].to(rows.dtype)


def first_component(rows: Tensor) -> Tensor:
    """Return the first principal component with the sign that puts the rows' mean on its side."""
    component = unsigned_component(rows)
    return component if torch.dot(component, rows.mean(0)) >= 0 else -component


SUMMARIES = {"mean": mean_row, "component": first_component, "unsigned_component": unsigned_component}


def told(loaded: LoadedModel, pair: Pair, contrast: Contrast) -> dict[str, Any]:
    """Return one pair's attribution for the report: tokens, scores, and which were taken out."""
    return {
        "line": pair.line,
        "prompt": pair.messages[-1]["content"],
        "gap": round(max(contrast.towards.gap, contrast.away.gap), 4),
        "preferred": told_side(loaded, contrast.towards),
        "dispreferred": told_side(loaded, contrast.away),
    }


def told_side(loaded: LoadedModel, scored: Scored) -> dict[str, Any]:
    ids = scored.sequence.ids[scored.first : scored.first + len(scored.scores)]
    return {
        "tokens": list(token_texts(loaded, ids)),
        "scores": [round(score, 4) for score in scored.scores],
        "ablated": [place - scored.first for place in scored.taken],
    }
