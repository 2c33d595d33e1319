"""The ways to turn preference pairs into one direction per block."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from statistics import median
from typing import Any

from torch import Tensor

from steering.building.contrastive_gradient import contrastive_gradient
from steering.building.grains import Grains, grains
from steering.building.grains_options import GrainsOptions
from steering.building.mean_difference import mean_difference
from steering.building.memo import Memo
from steering.building.pairs import Pair, tokenise_pairs
from steering.building.progress import Progress, silent, tracked
from steering.building.scoring import told
from steering.image_tokens import is_piece, pieces
from steering.loading import LoadedModel


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """vectors: float32 [layers, hidden_size], of any length; parameters: what a rebuild needs to know.

    attributions: of the first pairs, for the report; see steering.building.grains.told.
    """

    vectors: Tensor
    parameters: dict[str, Any] = field(default_factory=dict)
    attributions: list[dict[str, Any]] = field(default_factory=list)


# Pairs whose attributions the report shows.
TOLD = 6

Builder = Callable[[LoadedModel, Sequence[Pair], GrainsOptions, Progress, Memo], Directions]


def build_grains(
    loaded: LoadedModel, pairs: Sequence[Pair], options: GrainsOptions, progress: Progress, memo: Memo
) -> Directions:
    built = grains(loaded, pairs, options, progress, memo)
    parameters = {**plain(asdict(options)), **completeness(built, options), **image_share(built)}
    adds_up = options.attribution.adds_up
    examples = [told(loaded, *each, adds_up) for each in zip(pairs[:TOLD], built.contrasts, strict=False)]
    return Directions(built.vectors, parameters, examples)


def completeness(built: Grains, options: GrainsOptions) -> dict[str, Any]:
    """Return how well attributions add up that must: median and largest gap, how many miss the tolerance."""
    if not options.attribution.adds_up:
        return {}
    missed = sum(gap > options.attribution.tolerance for gap in built.gaps)
    return {
        "median_completeness_gap": round(median(built.gaps), 4),
        "largest_completeness_gap": round(max(built.gaps), 4),
        "attributions_over_tolerance": missed,
    }


def image_share(built: Grains) -> dict[str, Any]:
    """Return which share of the tokens that were taken out are pieces of images, where there are any."""
    sides = [side for each in built.contrasts for side in (each.towards, each.away)]
    taken = [is_piece(side.sequence.ids[place]) for side in sides for place in side.taken]
    seen = any(pieces(side.sequence.ids[side.first :]) for side in sides)
    return {"image_share": round(sum(taken) / len(taken), 4)} if seen and taken else {}


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return nested options flat, by the names of the command, as JSON can say them: no infinity."""
    inner = options.pop("attribution")
    method = {"attribution": inner.pop("method")}
    return {key: None if value == inf else value for key, value in {**options, **method, **inner}.items()}


def build_mean_difference(
    loaded: LoadedModel, pairs: Sequence[Pair], _options: GrainsOptions, progress: Progress, _memo: Memo
) -> Directions:
    return Directions(mean_difference(loaded, tokenise_pairs(loaded, pairs), progress))


def build_contrastive_gradient(
    loaded: LoadedModel, pairs: Sequence[Pair], _options: GrainsOptions, progress: Progress, _memo: Memo
) -> Directions:
    return Directions(contrastive_gradient(loaded, tokenise_pairs(loaded, pairs), progress))


def build_random_tokens(
    loaded: LoadedModel, pairs: Sequence[Pair], options: GrainsOptions, progress: Progress, memo: Memo
) -> Directions:
    """Return what GrAInS's options give where chance, not attribution, chooses the tokens."""
    return build_grains(loaded, pairs, replace(options, control=True), progress, memo)


BUILDERS: dict[str, Builder] = {
    "grains": build_grains,
    "mean_difference": build_mean_difference,
    "contrastive_gradient": build_contrastive_gradient,
}
# What a profile is compared with, at its own blocks and dose.
CONTROLS: dict[str, Builder] = {
    "mean_difference": build_mean_difference,
    "random_tokens": build_random_tokens,
}


def control_vectors(
    loaded: LoadedModel, pairs: Sequence[Pair], method: str, options: GrainsOptions, progress: Progress
) -> dict[str, Tensor]:
    """Return control -> vectors [layers, hidden_size] from the same pairs, the method's own left out."""
    names = [name for name in CONTROLS if name != method]
    return {
        name: CONTROLS[name](loaded, pairs, options, silent, Memo()).vectors
        for name in tracked(names, "controls", progress)
    }
