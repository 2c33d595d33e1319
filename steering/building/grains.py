"""GrAInS: the shift of the residual stream when the tokens that speak for an answer are taken out.

Source: GrAInS, arXiv 2507.18043, section 3, in the two readings that steering.building.attribution explains.
The `response` reading differs from the authors' code where measurement said so: the mean embedding stands
for an absent token, not PAD; activations are averaged over the answer, not taken at its last token; a
principal component gets its sign from the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steering.building.ablation import BASELINES, ablate, strongest
from steering.building.activations import mean_activations
from steering.building.attribution import Attribution, ablatable, attribute_answer, attribute_prompt
from steering.building.pairs import TokenisedPair, TokenSequence
from steering.building.progress import Progress, silent, tracked
from steering.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class GrainsOptions:
    """reading: whose tokens are scored; tokens: how many are ablated at most; steps: of the quadrature."""

    reading: Literal["response", "shared"] = "response"
    baseline: Literal["mean", "zero", "pad"] = "mean"
    tokens: int = 10
    steps: int = 12
    summary: Literal["mean", "component"] = "mean"


@dataclass(frozen=True, slots=True, eq=False)
class Grains:
    """vectors: float32 [layers, hidden_size]; gaps: the completeness gap of each attribution."""

    vectors: Tensor
    gaps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Sequences for and against the behaviour, each whole and with its telling tokens ablated."""

    towards: tuple[TokenSequence, TokenSequence]
    away: tuple[TokenSequence, TokenSequence]
    gaps: tuple[float, ...]


def grains(
    loaded: LoadedModel,
    pairs: Sequence[TokenisedPair],
    options: GrainsOptions = GrainsOptions(),
    progress: Progress = silent,
) -> Grains:
    """Return v = v_pos - v_neg at every block's output, and how well the attributions add up."""
    baseline = BASELINES[options.baseline](loaded)
    contrasted = contrast_answers if options.reading == "response" else contrast_prompt
    contrasts = [
        contrasted(loaded, pair, baseline, options) for pair in tracked(pairs, "attribution", progress)
    ]
    towards, away = [c.towards for c in contrasts], [c.away for c in contrasts]
    positive, negative = shifts(loaded, towards + away, baseline, progress).split(len(pairs), dim=1)
    summarise = SUMMARIES[options.summary]
    vectors = [summarise(p) - summarise(n) for p, n in zip(positive, negative, strict=True)]
    return Grains(torch.stack(vectors), tuple(gap for contrast in contrasts for gap in contrast.gaps))


def contrast_answers(
    loaded: LoadedModel, pair: TokenisedPair, baseline: Tensor, options: GrainsOptions
) -> Contrast:
    """Ablate in each answer the tokens that speak most for it."""
    sides, gaps = [], []
    for sequence in (pair.preferred, pair.dispreferred):
        attribution = attribute_answer(loaded, sequence, baseline, options.steps)
        places = strongest(attribution.scores, range(len(attribution.scores)), options.tokens)
        sides.append((sequence, ablate(sequence, [sequence.start + place for place in places])))
        gaps.append(attribution.gap)
    return Contrast(sides[0], sides[1], tuple(gaps))


def contrast_prompt(
    loaded: LoadedModel, pair: TokenisedPair, baseline: Tensor, options: GrainsOptions
) -> Contrast:
    """Ablate in the prompt the tokens that speak most for, and most against, the preferred answer."""
    attribution: Attribution = attribute_prompt(loaded, pair, baseline, options.steps)
    places = ablatable(loaded, pair.prompt)
    whole = TokenSequence(pair.prompt, len(pair.prompt) - 1)
    sides = [
        (whole, ablate(whole, strongest(sign * attribution.scores, places, options.tokens)))
        for sign in (1.0, -1.0)
    ]
    return Contrast(sides[0], sides[1], (attribution.gap,))


def shifts(
    loaded: LoadedModel,
    sides: Sequence[tuple[TokenSequence, TokenSequence]],
    baseline: Tensor,
    progress: Progress = silent,
) -> Tensor:
    """Return h(whole) - h(ablated), float32 [layers, sides, hidden_size]."""
    sequences = [whole for whole, _ in sides] + [ablated for _, ablated in sides]
    whole, ablated = mean_activations(loaded, sequences, baseline, progress).split(len(sides), dim=1)
    return whole - ablated


def mean_row(rows: Tensor) -> Tensor:
    return rows.mean(0)


def first_component(rows: Tensor) -> Tensor:
    """Return the first principal component of rows [n, hidden_size], of length 1.

    A component has no sign of its own: it gets the one with which the rows' mean lies on its side.
    """
    centred = rows - rows.mean(0)
    component = torch.linalg.svd(centred.double(), full_matrices=False).Vh[0].to(rows.dtype)
    return component if torch.dot(component, rows.mean(0)) >= 0 else -component


SUMMARIES = {"mean": mean_row, "component": first_component}
