"""The evidence: effect and damage on held-out items, against unsteered and against random directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from steering.building.calibration import STRENGTHS
from steering.building.generation import Deltas, scaled
from steering.building.measuring import Measure, Outcome
from steering.building.progress import Progress, silent, tracked

# Held-out items below which an interval says nothing.
ENOUGH_ITEMS = 20
RANDOM_DIRECTIONS = 30
# Random directions below which being stronger than each of them may be chance, at the 95% level.
ENOUGH_DIRECTIONS = 19
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of paired differences with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What the deltas do on held-out items; scores grow with the behaviour.

    by_strength: outcomes at each strength; random: at strength 1 along random directions of the same length;
    controls: at strength 1 along directions that other ways found in the same pairs.
    """

    unsteered: Outcome
    by_strength: dict[float, Outcome]
    random: tuple[Outcome, ...]
    seed: int
    controls: dict[str, Outcome] = field(default_factory=dict)

    def effect(self, strength: float) -> Interval:
        """Return the scores at the strength minus the unsteered scores."""
        return paired_interval(self.by_strength[strength].scores, self.unsteered.scores, self.seed)

    def effect_over_random(self) -> Interval:
        """Return the scores at strength 1 minus each item's mean score under random directions."""
        means = np.mean([outcome.scores for outcome in self.random], axis=0)
        return paired_interval(self.by_strength[1.0].scores, means.tolist(), self.seed)

    def control_effect(self, control: str) -> Interval:
        """Return the scores under the control minus the unsteered scores."""
        return paired_interval(self.controls[control].scores, self.unsteered.scores, self.seed)

    def advantage(self, control: str) -> Interval:
        """Return the scores at strength 1 minus those under the control."""
        return paired_interval(self.by_strength[1.0].scores, self.controls[control].scores, self.seed)

    @property
    def works(self) -> bool:
        """Whether, on enough items, the interval lies above 0 and none of enough directions is as strong."""
        steered = self.by_strength[1.0]
        return (
            len(steered.scores) >= ENOUGH_ITEMS
            and len(self.random) >= ENOUGH_DIRECTIONS
            and self.effect(1.0).low > 0
            and all(steered.score > outcome.score for outcome in self.random)
        )


def evaluate(
    deltas: Deltas,
    measure: Measure,
    seed: int = 0,
    progress: Progress = silent,
    random_directions: int = RANDOM_DIRECTIONS,
    strengths: Sequence[float] = STRENGTHS,
    controls: Mapping[str, Deltas] = MappingProxyType({}),
) -> Evaluation:
    """Return what the deltas do on the measure's items; random directions come from the seed.

    strengths: any but 0; 1 and -1, which stand in every headline, must be among them. controls: name -> what
    else is measured beside.
    """
    settings: list[tuple[Deltas, bool]] = [({}, True)]
    settings += [(scaled(deltas, strength), True) for strength in strengths]
    settings += [(deltas, True) for deltas in controls.values()]
    settings += [(direction, False) for direction in random_deltas(deltas, random_directions, seed)]
    outcomes = [measure(*setting) for setting in tracked(settings, "evaluation", progress)]
    by_strength = dict(zip(strengths, outcomes[1:], strict=False))
    others = outcomes[1 + len(strengths) :]
    by_control = dict(zip(controls, others, strict=False))
    return Evaluation(outcomes[0], by_strength, tuple(others[len(controls) :]), seed, by_control)


def random_deltas(deltas: Deltas, count: int, seed: int) -> list[dict[int, Tensor]]:
    """Return `count` random directions at the same blocks, each as long as the delta that it stands for."""
    generator = torch.Generator().manual_seed(seed)
    return [{layer: random_like(delta, generator) for layer, delta in deltas.items()} for _ in range(count)]


def random_like(delta: Tensor, generator: torch.Generator) -> Tensor:
    direction = torch.randn(delta.shape, generator=generator)
    return torch.nn.functional.normalize(direction, dim=0) * torch.linalg.vector_norm(delta.cpu())


def paired_interval(scores: Sequence[float], others: Sequence[float], seed: int) -> Interval:
    """Return the mean of the paired differences with its 95% percentile bootstrap interval over items."""
    differences = np.asarray(scores) - np.asarray(others)
    chosen = np.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.percentile(differences[chosen].mean(1), [2.5, 97.5])
    return Interval(fmean(differences.tolist()), float(low), float(high))
