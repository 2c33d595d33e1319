"""Which tokens of a pair speak for its behaviour, by each reading of GrAInS, and are taken out."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from steering.building.ablation import BASELINES, standing_in, strongest
from steering.building.activations import mean_activations
from steering.building.attribution import (
    Attribution,
    ablatable,
    attribute_answer,
    attribute_context,
    attribute_demonstration,
    attribute_direction,
    attribute_prompt,
    attribute_sequence,
)
from steering.building.contrastive_gradient import contrastive_gradients
from steering.building.grains_options import SCORED_DEPTH, GrainsOptions
from steering.building.pairs import Pair, TokenSequence, parted, tokenise_demonstration, tokenise_pairs
from steering.building.pictured import urls_of
from steering.building.progress import Progress, silent
from steering.building.token_texts import token_texts
from steering.image_tokens import pieces
from steering.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class Scored:
    """A sequence, its tokens' scores from position `first` on, and the positions that are taken out.

    scores: how much each token speaks for this side.
    gap: the completeness gap of the scores; steps: the gradients that they took; taken: most telling first.
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


class Scorer:
    """Scores the tokens of pairs and says which are taken out."""

    def __init__(
        self,
        loaded: LoadedModel,
        pairs: Sequence[Pair],
        options: GrainsOptions,
        progress: Progress = silent,
    ) -> None:
        self._loaded = loaded
        self._progress = progress
        self._pairs = pairs
        self._tokenised = tokenise_pairs(loaded, pairs)
        self._options = options
        self._baseline = BASELINES[options.baseline](loaded)

    def contrast(self, number: int) -> Contrast:
        return READINGS[self._options.reading](self, number)

    def by_prompt(self, number: int) -> Contrast:
        """Take out of the prompt the tokens that speak most for, and most against, the preferred answer.

        What both answers begin with belongs to the prompt, which is read where they part.
        """
        pair, options = parted(self._tokenised[number]), self._options
        whole = TokenSequence(pair.prompt, len(pair.prompt) - 1)
        found = self._found(
            pair.prompt,
            lambda: attribute_prompt(
                self._loaded, pair, self._standing_in(pair.prompt), options.attribution, options.last_token
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
                lambda: attribute_sequence(
                    self._loaded, sequence, self._standing_in(sequence.ids), self._options.attribution
                ),
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
        """Take out of each answer the tokens that most turn the activations along the mean difference."""
        return self._by_turning(number, lambda: self._differences)

    def by_influence(self, number: int) -> Contrast:
        """Take out of each answer the tokens that most turn the activations along the mean gradient."""
        return self._by_turning(number, lambda: self._gradients)

    def by_context(self, number: int) -> Contrast:
        """Take out of the prompt the tokens that most turn each answer along the mean gradient."""
        return self._by_turning(number, lambda: self._gradients, of_prompt=True)

    def _by_turning(self, number: int, directions: Callable[[], Tensor], of_prompt: bool = False) -> Contrast:
        """Take out tokens, the answer's or the prompt's, that turn most along the other pairs' directions."""
        attribute = attribute_context if of_prompt else attribute_direction

        def scored(sequence: TokenSequence, sign: float) -> Scored:
            first, last = (0, sequence.start) if of_prompt else (sequence.start, len(sequence.ids))
            tokens = sequence.ids[first:last]
            found = self._found(
                tokens,
                lambda: attribute(
                    self._loaded,
                    sequence,
                    self._block,
                    directions().sum(0) - directions()[number],
                    self._standing_in(tokens),
                    self._options.attribution,
                ),
            )
            candidates = ablatable(self._loaded, tokens) if of_prompt else range(len(tokens))
            return self._scored(sequence, first, found, candidates, sign)

        pair = self._tokenised[number]
        return Contrast(scored(pair.preferred, 1.0), scored(pair.dispreferred, -1.0))

    def _standing_in(self, ids: Sequence[int]) -> Tensor:
        return standing_in(self._loaded, ids, self._baseline)

    @property
    def _block(self) -> int:
        chosen = self._options.block
        return int(SCORED_DEPTH * len(self._loaded.blocks)) if chosen is None else chosen

    @cached_property
    def _differences(self) -> Tensor:
        """Each pair's difference of mean activations at the scored block, [pairs, hidden_size]."""
        sides = [pair.preferred for pair in self._tokenised] + [pair.dispreferred for pair in self._tokenised]
        found = mean_activations(self._loaded, sides, progress=self._progress, stage="differences")
        towards, away = found[self._block].split(len(self._tokenised))
        return towards - away

    @cached_property
    def _gradients(self) -> Tensor:
        """Each pair's contrastive gradient at the scored block, [pairs, hidden_size]."""
        return contrastive_gradients(self._loaded, self._tokenised, self._progress)[self._block]

    def _found(self, tokens: Sequence[int], attribute: Callable[[], Attribution]) -> Attribution:
        """Return the tokens' attribution; the control, which takes out whatever, needs none."""
        return Attribution(torch.zeros(len(tokens)), 0.0, 0.0, 0) if self._options.control else attribute()

    def _scored(
        self, sequence: TokenSequence, first: int, found: Attribution, places: Sequence[int], sign: float
    ) -> Scored:
        """Choose among places, counted from `first`, those that speak most for the side; sign: its own."""
        scores = sign * found.scores
        if self._options.control:
            drawn = random.Random(f"{self._options.seed} {sign} {sequence.ids}")
            taken = drawn.sample(places, min(self._options.tokens, len(places)))
        else:
            taken = strongest(scores, places, self._options.tokens)
        positions = tuple(first + place for place in taken)
        return Scored(sequence, first, tuple(scores.tolist()), found.gap, found.steps, positions)


READINGS: dict[str, Callable[[Scorer, int], Contrast]] = {
    "shared": Scorer.by_prompt,
    "authors": Scorer.by_sequence,
    "response": Scorer.by_answer,
    "demonstration": Scorer.by_demonstration,
    "direction": Scorer.by_direction,
    "influence": Scorer.by_influence,
    "context": Scorer.by_context,
}


def told(loaded: LoadedModel, pair: Pair, contrast: Contrast, adds_up: bool = True) -> dict[str, Any]:
    """Return one pair's attribution for the report: tokens, scores, and which were taken out.

    adds_up: whether the scores must sum to something, so that a gap means anything.
    """
    gap = {"gap": round(max(contrast.towards.gap, contrast.away.gap), 4)} if adds_up else {}
    return {
        "line": pair.line,
        "prompt": pair.messages[-1]["content"],
        **gap,
        **told_image(loaded, pair, contrast.towards),
        "preferred": told_side(loaded, contrast.towards),
        "dispreferred": told_side(loaded, contrast.away),
    }


def told_image(loaded: LoadedModel, pair: Pair, scored: Scored) -> dict[str, Any]:
    """Return the image of a pair that has one, with its pieces' scores and those that were taken out.

    columns: of their grid, None where the family does not tell.
    """
    urls = urls_of(pair.messages)
    seen = [place for place in pieces(scored.sequence.ids) if place >= scored.first]
    if len(urls) != 1 or not seen:
        return {}
    return {
        "image": {
            "url": urls[0],
            "scores": [round(scored.scores[place - scored.first], 4) for place in seen],
            "ablated": [seen.index(place) for place in sorted(scored.taken) if place in seen],
            "columns": loaded.image_tokens.columns(scored.sequence.ids),
        }
    }


def told_side(loaded: LoadedModel, scored: Scored) -> dict[str, Any]:
    ids = scored.sequence.ids[scored.first : scored.first + len(scored.scores)]
    return {
        "tokens": list(token_texts(loaded, ids)),
        "scores": [round(score, 4) for score in scored.scores],
        "ablated": sorted(place - scored.first for place in scored.taken),
    }
