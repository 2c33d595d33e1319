"""Choose the block and the dose: the largest effect that leaves the text fluent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.building.damage import accuracy_change
from steering.building.generation import scaled
from steering.building.measuring import Measure, Outcome
from steering.building.progress import Progress, silent, tracked
from steering.errors import InvalidPairs
from steering.types import Tokens

DEPTHS = (0.3, 0.4, 0.5, 0.6)
DOSES = (0.05, 0.1, 0.15, 0.2)
# So many of the blocks at those depths, the lower ones, are also tried at once.
MOST_TOGETHER = 3
# Where a chosen dose is measured once more: for its safe range, and for the evidence.
STRENGTHS = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class DamageBound:
    """How much an effect may cost: in the answers themselves, and where its behaviour is not asked for.

    log_probability: nats per token that the answers may be less likely under the unsteered model;
    distinct_2: share of the unsteered answers' distinct word pairs that must remain;
    loss: share of the unsteered loss on neutral text by which it may rise, or loss_nats per token where that
    is more: of a model that is sure of nearly all, a share is nothing;
    accuracy: share of the questions that may be lost on balance, the same questions paired. Of 100 that is
    two, less than chance alone moves: it stops a fall, it measures none.
    """

    log_probability: float = 0.6
    distinct_2: float = 0.9
    loss: float = 0.05
    accuracy: float = 0.02
    loss_nats: float = 0.02

    def admits(self, steered: Outcome, unsteered: Outcome) -> bool:
        """Return whether the bound holds; both outcomes have fluency and damage."""
        return self.leaves_answers_fluent(steered, unsteered) and self.leaves_the_rest(steered, unsteered)

    def leaves_answers_fluent(self, steered: Outcome, unsteered: Outcome) -> bool:
        assert steered.fluency is not None
        assert unsteered.fluency is not None
        likely = unsteered.fluency.log_probability - self.log_probability
        distinct = unsteered.fluency.distinct_2 * self.distinct_2
        return steered.fluency.log_probability >= likely and steered.fluency.distinct_2 >= distinct

    def leaves_the_rest(self, steered: Outcome, unsteered: Outcome) -> bool:
        assert steered.damage is not None
        assert unsteered.damage is not None
        lost = -accuracy_change(steered.damage, unsteered.damage).share
        highest = self.highest_loss(unsteered)
        return steered.damage.loss <= highest and lost <= self.accuracy + ROUNDING

    def highest_loss(self, unsteered: Outcome) -> float:
        """Return the loss on neutral text up to which the bound holds."""
        assert unsteered.damage is not None
        return unsteered.damage.loss + max(self.loss * unsteered.damage.loss, self.loss_nats)

    def rules_out(self, setting: "Setting", trial: "Trial", unsteered: Outcome) -> bool:
        """Return whether a smaller dose at the same blocks already raised the loss too far."""
        gentler = trial.setting.layers == setting.layers and trial.setting.dose < setting.dose
        return gentler and trial.loss > self.highest_loss(unsteered)


@dataclass(frozen=True, slots=True)
class Setting:
    """The blocks that are steered and the dose: a share of each block's median activation norm."""

    layers: tuple[int, ...]
    dose: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What a setting did on the dev items, and to neutral text."""

    setting: Setting
    effect: float
    log_probability: float
    distinct_2: float
    loss: float
    accuracy: float
    admitted: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was tried and what was chosen.

    safe_strengths: the lowest and the highest strength of the chosen setting within the bound, if looked for.
    """

    chosen: Trial
    unsteered: Outcome
    trials: tuple[Trial, ...]
    safe_strengths: tuple[float, float] | None


def candidate_layers(count: int, tokens: Tokens = "all") -> tuple[tuple[int, ...], ...]:
    """Return the blocks worth trying in a model of `count`: each alone, and the lower ones at once.

    tokens: those that are moved. No block reads what the last one does to an image's, so it is none for them.
    """
    highest = count - 2 if tokens == "image" else count - 1
    layers = sorted({min(round(depth * count), highest) for depth in DEPTHS})
    together = tuple(layers[:MOST_TOGETHER])
    return (*((layer,) for layer in layers), *([together] if len(together) > 1 else []))


def candidate_doses(layers: tuple[int, ...]) -> tuple[float, ...]:
    """Return the doses worth trying at each of the blocks; several share what one would get."""
    return tuple(round(dose / len(layers), 4) for dose in DOSES)


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
    find_safe: bool = True,
) -> Calibration:
    """Return the admitted setting with the largest effect on the measure's items, its safe range, all trials.

    Larger doses than one that raises the loss on neutral text too far are not tried at its blocks.
    find_safe: whether to look for that range, a few more measurements.

    Raises InvalidPairs when every setting does too much damage, or none of several any good; a single one
    was chosen by whoever named it.
    """
    unsteered = measure({}, True)
    trials: list[Trial] = []
    for setting in tracked(settings, "calibration", progress):
        if not any(bound.rules_out(setting, trial, unsteered) for trial in trials):
            deltas = deltas_at(setting, vectors, norms)
            trials.append(try_setting(setting, deltas, measure, unsteered, bound))
    admitted = [trial for trial in trials if trial.admitted]
    if not admitted:
        raise InvalidPairs(
            f"each of the {len(trials)} settings tried damages the answers, neutral text or knowledge too "
            f"much; the gentlest: {told_damage(min(trials, key=lambda trial: trial.loss), unsteered)}; "
            "try other --layers or a smaller --dose"
        )
    chosen = max(admitted, key=lambda trial: trial.effect)
    if chosen.effect <= 0 and len(settings) > 1:
        raise InvalidPairs(told_useless(chosen, len(admitted)))
    deltas = deltas_at(chosen.setting, vectors, norms)
    safe = find_safe_strengths(deltas, measure, unsteered, bound, progress) if find_safe else None
    return Calibration(chosen, unsteered, tuple(trials), safe)


def told_useless(best: Trial, count: int) -> str:
    """Return that no setting within the bound moves the dev items towards the behaviour, and the way out."""
    return (
        f"none of the {count} settings within the damage bound moves the items that the dose is chosen on "
        f"towards the behaviour; the best: {told_setting(best.setting)}: effect {best.effect:+.4f}; try "
        "other --layers or a larger --dose, give more pairs, and see that the preferred answers are the ones "
        "that are wanted"
    )


def told_setting(setting: Setting) -> str:
    return f"block {'+'.join(map(str, setting.layers))}, dose {setting.dose:g}"


def told_damage(trial: Trial, unsteered: Outcome) -> str:
    """Return what a setting did to all that is bounded, against unsteered."""
    assert unsteered.fluency is not None
    assert unsteered.damage is not None
    answers, neutral = unsteered.fluency, unsteered.damage
    return (
        f"{told_setting(trial.setting)}: loss on neutral text {neutral.loss:.2f} to "
        f"{trial.loss:.2f}, accuracy {neutral.accuracy:.0%} to {trial.accuracy:.0%}, the answers' "
        f"log-probability {answers.log_probability:.2f} to {trial.log_probability:.2f}, "
        f"distinct word pairs {answers.distinct_2:.2f} to {trial.distinct_2:.2f}"
    )


def try_setting(
    setting: Setting, deltas: dict[int, Tensor], measure: Measure, unsteered: Outcome, bound: DamageBound
) -> Trial:
    outcome = measure(deltas, True)
    assert outcome.fluency is not None
    assert outcome.damage is not None
    return Trial(
        setting,
        outcome.score - unsteered.score,
        outcome.fluency.log_probability,
        outcome.fluency.distinct_2,
        outcome.damage.loss,
        outcome.damage.accuracy,
        bound.admits(outcome, unsteered),
    )


def find_safe_strengths(
    deltas: dict[int, Tensor], measure: Measure, unsteered: Outcome, bound: DamageBound, progress: Progress
) -> tuple[float, float]:
    """Return the lowest and the highest of STRENGTHS up to which the bound holds.

    Strength 1 is known to keep it, so that side is looked at from there on; the other from 0 on: 0 where even
    the weakest strength breaks the bound.
    """
    safe, broken = {False: 0.0, True: 1.0}, set()
    unknown = [strength for strength in STRENGTHS if strength < 0.0 or strength > 1.0]
    for strength in tracked(sorted(unknown, key=abs), "safe range", progress):
        side = strength > 0
        if side in broken:
            continue
        if bound.admits(measure(scaled(deltas, strength), True), unsteered):
            safe[side] = strength
        else:
            broken.add(side)
    return safe[False], safe[True]
