"""The ways to turn preference pairs into one direction per block."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from torch import Tensor

from steering.building.grains import GrainsOptions, grains
from steering.building.mean_difference import mean_difference
from steering.building.pairs import TokenisedPair
from steering.building.progress import Progress
from steering.loading import LoadedModel


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """vectors: float32 [layers, hidden_size], of any length; parameters: what a rebuild needs to know."""

    vectors: Tensor
    parameters: dict[str, Any] = field(default_factory=dict)


Builder = Callable[[LoadedModel, Sequence[TokenisedPair], GrainsOptions, Progress], Directions]


def build_grains(
    loaded: LoadedModel, pairs: Sequence[TokenisedPair], options: GrainsOptions, progress: Progress
) -> Directions:
    built = grains(loaded, pairs, options, progress)
    gap = round(median(built.gaps), 4)
    return Directions(built.vectors, {**asdict(options), "median_completeness_gap": gap})


def build_mean_difference(
    loaded: LoadedModel, pairs: Sequence[TokenisedPair], _options: GrainsOptions, progress: Progress
) -> Directions:
    return Directions(mean_difference(loaded, pairs, progress))


BUILDERS: dict[str, Builder] = {"grains": build_grains, "mean_difference": build_mean_difference}
