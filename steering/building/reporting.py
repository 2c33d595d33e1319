"""The evidence as JSON: the whole report, and the headline that goes into the manifest."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from steering.building.calibration import Calibration
from steering.building.damage import accuracy_change
from steering.building.evaluation import ENOUGH_DIRECTIONS, ENOUGH_ITEMS, Evaluation, Interval
from steering.building.measuring import Fluency, Outcome
from steering.building.pairs import Pair
from steering.building.pictured import urls_of

SAMPLES = 6


def headline(evaluation: Evaluation, metric: str, direction: int) -> dict[str, Any]:
    """Return what a reader wants to know first.

    Means are in the metric's own sign; effects count towards the behaviour.
    """
    steered, random = evaluation.by_strength[1.0], [outcome.score for outcome in evaluation.random]
    return {
        "metric": metric,
        "items": len(steered.scores),
        "unsteered": rounded(direction * evaluation.unsteered.score),
        "steered": rounded(direction * steered.score),
        "steered_away": rounded(direction * evaluation.by_strength[-1.0].score),
        "effect": interval(evaluation.effect(1.0)),
        "effect_away": interval(evaluation.effect(-1.0)),
        "effect_over_random": interval(evaluation.effect_over_random()),
        "random": {
            "directions": len(random),
            "mean": rounded(direction * sum(random) / len(random)),
            "strongest": rounded(direction * max(random)),
        },
        "controls": {name: against_control(evaluation, name, direction) for name in evaluation.controls},
        "fluency": {name: fluency(outcome) for name, outcome in sides(evaluation).items()},
        "damage": {name: damage(outcome) for name, outcome in sides(evaluation).items()},
        "choices": {name: choices(outcome) for name, outcome in sides(evaluation).items()},
        "works": evaluation.works,
    }


def shortcomings(head: dict[str, Any]) -> Iterator[str]:
    """Yield why a headline does not show that the profile works: nothing if it does."""
    items, directions, effect = head["items"], head["random"]["directions"], head["effect"]
    few_items, few_directions = items < ENOUGH_ITEMS, directions < ENOUGH_DIRECTIONS
    if few_items:
        yield (
            f"{items} held-out items are too few for evidence, {ENOUGH_ITEMS} are the least; give more "
            "pairs, or prompts of your own with --metric and --test"
        )
    if few_directions:
        yield f"{directions} random directions are too few to judge by, {ENOUGH_DIRECTIONS} are the least"
    if effect["high"] < 0:
        yield "the effect goes the wrong way: all of its interval is away from the behaviour"
    elif effect["low"] <= 0:
        yield "the interval of the effect holds zero: no effect was shown"
    elif not (head["works"] or few_items or few_directions):
        yield "a random direction of the same length did as much"


def against_control(evaluation: Evaluation, control: str, direction: int) -> dict[str, Any]:
    """Return a control's score, and how far the profile is above it, towards the behaviour."""
    return {
        "score": rounded(direction * evaluation.controls[control].score),
        "advantage": interval(evaluation.advantage(control)),
    }


def sides(evaluation: Evaluation) -> dict[str, Outcome]:
    by_strength = evaluation.by_strength
    return {
        "unsteered": evaluation.unsteered,
        "steered": by_strength[1.0],
        "steered_away": by_strength[-1.0],
    }


def report(
    evaluation: Evaluation,
    metric: str,
    direction: int,
    prompts: list[str],
    calibration: Calibration | None = None,
    pairs: Sequence[Pair] = (),
) -> dict[str, Any]:
    """Return headline, dose-response, controls, random directions, samples, and a calibration's trials.

    pairs: whose prompts they are, where they are of pairs.
    """
    return {
        "headline": headline(evaluation, metric, direction),
        "dose_response": dose_response(evaluation, direction),
        "controls": {name: told_control(evaluation, name, direction) for name in evaluation.controls},
        "random_scores": [rounded(direction * outcome.score) for outcome in evaluation.random],
        "samples": samples(evaluation, prompts, pairs),
        "calibration": trials(calibration) if calibration is not None else [],
    }


def told_control(evaluation: Evaluation, control: str, direction: int) -> dict[str, Any]:
    """Return all that is known of a control: score, effect, costs, and the profile's advantage over it."""
    return {
        **against_control(evaluation, control, direction),
        "effect": interval(evaluation.control_effect(control)),
        **costs(evaluation.controls[control]),
    }


def dose_response(evaluation: Evaluation, direction: int) -> list[dict[str, Any]]:
    """Return one row per strength, 0 among them: score, effect with its interval, and every cost.

    accuracy_change: paired with no steering, and its standard error.
    """
    rows: list[tuple[float, Outcome, dict[str, Any]]] = [(0.0, evaluation.unsteered, {})]
    for strength, outcome in evaluation.by_strength.items():
        rows.append((strength, outcome, against_unsteered(evaluation, strength)))
    return [
        {
            "strength": strength,
            "score": rounded(direction * outcome.score),
            **costs(outcome),
            "repetition": rounded(outcome.repetition),
            **choices(outcome),
            **paired,
        }
        for strength, outcome, paired in sorted(rows, key=lambda row: row[0])
    ]


def against_unsteered(evaluation: Evaluation, strength: float) -> dict[str, Any]:
    steered, unsteered = evaluation.by_strength[strength].damage, evaluation.unsteered.damage
    found: dict[str, Any] = {"effect": interval(evaluation.effect(strength))}
    if steered is not None and unsteered is not None:
        change = accuracy_change(steered, unsteered)
        found["accuracy_change"] = {"share": rounded(change.share), "error": rounded(change.error)}
    return found


def samples(evaluation: Evaluation, prompts: list[str], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return the first items' answers side by side, with their pairs' images and answers."""
    return [
        {
            "prompt": prompt,
            **(told_pair(pairs[item]) if pairs else {}),
            "unsteered": evaluation.unsteered.answers[item],
            **{f"strength {s:+g}": outcome.answers[item] for s, outcome in evaluation.by_strength.items()},
        }
        for item, prompt in enumerate(prompts[:SAMPLES])
    ]


def told_pair(pair: Pair) -> dict[str, Any]:
    images = urls_of(pair.messages)
    answers = {"preferred": pair.preferred, "dispreferred": pair.dispreferred}
    return {"images": images, **answers} if images else answers


def trials(calibration: Calibration) -> list[dict[str, Any]]:
    return [
        {
            "layers": list(trial.setting.layers),
            "dose": trial.setting.dose,
            "effect": rounded(trial.effect),
            "log_probability": rounded(trial.log_probability),
            "distinct_2": rounded(trial.distinct_2),
            "loss": rounded(trial.loss),
            "accuracy": rounded(trial.accuracy),
            "admitted": trial.admitted,
        }
        for trial in calibration.trials
    ]


def fluency(outcome: Outcome) -> dict[str, float]:
    found: Fluency | None = outcome.fluency
    if found is None:
        return {}
    return {"log_probability": rounded(found.log_probability), "distinct_2": rounded(found.distinct_2)}


def damage(outcome: Outcome) -> dict[str, float]:
    """Return loss (nats per token of neutral text) and accuracy (share of the questions)."""
    found = outcome.damage
    return {} if found is None else {"loss": rounded(found.loss), "accuracy": rounded(found.accuracy)}


def costs(outcome: Outcome) -> dict[str, float]:
    return {**fluency(outcome), **damage(outcome)}


def choices(outcome: Outcome) -> dict[str, float]:
    """Return the shares of pairs whose preferred answer is the likelier, as a whole and per token."""
    found = outcome.choices
    if found is None:
        return {}
    return {
        "chosen_whole": rounded(fmean(found.whole)),
        "chosen_per_token": rounded(fmean(found.per_token)),
    }


def interval(found: Interval) -> dict[str, float]:
    return {name: rounded(value) for name, value in asdict(found).items()}


def rounded(value: float) -> float:
    return round(value, 4)
