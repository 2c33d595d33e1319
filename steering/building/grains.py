"""GrAInS: the shift of the residual stream when the tokens that speak for an answer are taken out.

Source: GrAInS, arXiv 2507.18043, section 3. Readings of it, by whose tokens are scored:
- `shared`, the paper's text: the prompt's, by the difference of both answers' log-probabilities;
- `authors`, the authors' code: prompt and answer, by the log-probability of the answer's last token;
- `response`: each answer's, by its log-probability;
- `demonstration`: each answer's, by how much likelier it makes another pair's preferred answer than its
  dispreferred one, when it stands in the conversation as an example;
- `direction`: each answer's, by how far it turns a block's output along the other pairs' mean difference;
- `influence`: each answer's, by how far it turns a block's output the way that makes the other pairs'
  preferred answers likelier and their dispreferred ones less likely: along their contrastive gradient;
- `context`: the prompt's, words and pieces of images, by how far they turn each answer's activations so.
What differs from the paper by default is what measurement asked for, see docs/evidence.md; PAPER differs
in nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from steering.building.ablation import FILLS, ablate
from steering.building.activations import mean_activations
from steering.building.attribution import AttributionOptions
from steering.building.grains_options import GrainsOptions
from steering.building.memo import Memo
from steering.building.pairs import Pair, TokenSequence
from steering.building.progress import Progress, silent, tracked
from steering.building.scoring import CONTRAST, Contrast, Scored, Scorer
from steering.errors import InvalidPairs
from steering.loading import LoadedModel


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
    scorer = Scorer(loaded, pairs, options, progress)
    numbers = range(len(pairs))
    contrasts = [
        memo.recall(f"attribution {number}", CONTRAST, partial(scorer.contrast, number))
        for number in tracked(numbers, "attribution", progress)
    ]
    vectors = contrast_vectors(loaded, contrasts, options, progress)
    found = Grains(vectors, tuple(contrasts))
    refuse_unfinished(found.gaps, options.attribution)
    return found


def refuse_unfinished(gaps: Sequence[float], options: AttributionOptions) -> None:
    """Raise InvalidPairs if attributions that should add up mostly do not."""
    if options.adds_up and options.tolerance < float("inf"):
        missed = sum(gap > options.tolerance for gap in gaps)
        if 2 * missed > len(gaps):
            raise InvalidPairs(
                f"{missed} of {len(gaps)} attributions miss the completeness tolerance of "
                f"{options.tolerance:g} after {options.most_steps} steps; allow more, or another baseline"
            )


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
