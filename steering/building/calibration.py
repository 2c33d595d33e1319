"""Choose the block and the dose: the largest effect that leaves the text fluent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.building.measuring import Fluency, Measure, Outcome
from steering.building.progress import Progress, silent, tracked
from steering.errors import InvalidPairs

DEPTHS = (0.3, 0.4, 0.5, 0.6)
DOSES = (0.15, 0.2, 0.25, 0.3)


@dataclass(frozen=True, slots=True)
class DamageBound:
    """How much fluency an effect may cost.

    log_probability: nats per token that the answers may be less likely under the unsteered model;
    distinct_2: share of the unsteered answers' distinct word pairs that must remain.
    """

    log_probability: float = 0.6
    distinct_2: float = 0.9

    def admits(self, steered: Fluency, unsteered: Fluency) -> bool:
        return (
            steered.log_probability >= unsteered.log_probability - self.log_probability
            and steered.distinct_2 >= unsteered.distinct_2 * self.distinct_2
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """The blocks that are steered and the dose: a share of each block's median activation norm."""

    layers: tuple[int, ...]
    dose: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What a setting did on the dev items."""

    setting: Setting
    effect: float
    log_probability: float
    distinct_2: float
    admitted: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    chosen: Trial
    unsteered: Outcome
    trials: tuple[Trial, ...]


def candidate_layers(count: int) -> tuple[tuple[int, ...], ...]:
    """Return single blocks at the depths that were worth trying, for a model of `count` blocks."""
    return tuple((layer,) for layer in sorted({min(round(depth * count), count - 1) for depth in DEPTHS}))


def deltas_at(setting: Setting, vectors: Tensor, norms: Tensor) -> dict[int, Tensor]:
    """Return layer -> delta of length dose * norm along that layer's vector.

    vectors [layers, hidden_size], norms [layers].
    """
    return {
        layer: setting.dose * norms[layer] * torch.nn.functional.normalize(vectors[layer], dim=0)
        for layer in setting.layers
    }


def calibrate(
    vectors: Tensor,
    norms: Tensor,
    measure: Measure,
    settings: Sequence[Setting],
    bound: DamageBound = DamageBound(),
    progress: Progress = silent,
) -> Calibration:
    """Return the admitted setting with the largest effect on the measure's items, and all trials.

    Raises InvalidPairs when every setting does too much damage.
    """
    unsteered = measure({}, True)
    trials = [
        try_setting(setting, deltas_at(setting, vectors, norms), measure, unsteered, bound)
        for setting in tracked(settings, "calibration", progress)
    ]
    admitted = [trial for trial in trials if trial.admitted]
    if not admitted:
        raise InvalidPairs(
            f"each of the {len(trials)} settings tried makes the text too unlikely or repetitive; "
            "try other --layers or a smaller --dose"
        )
    return Calibration(max(admitted, key=lambda trial: trial.effect), unsteered, tuple(trials))


def try_setting(
    setting: Setting, deltas: dict[int, Tensor], measure: Measure, unsteered: Outcome, bound: DamageBound
) -> Trial:
    outcome = measure(deltas, True)
    assert outcome.fluency is not None
    assert unsteered.fluency is not None
    return Trial(
        setting,
        outcome.score - unsteered.score,
        outcome.fluency.log_probability,
        outcome.fluency.distinct_2,
        bound.admits(outcome.fluency, unsteered.fluency),
    )
