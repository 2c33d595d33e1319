"""The evidence as JSON: the whole report, and the headline that goes into the manifest."""

from dataclasses import asdict
from typing import Any

from steering.building.calibration import Calibration
from steering.building.evaluation import Evaluation, Interval
from steering.building.measuring import Fluency, Outcome

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
        "fluency": {
            "unsteered": fluency(evaluation.unsteered),
            "steered": fluency(steered),
            "steered_away": fluency(evaluation.by_strength[-1.0]),
        },
        "works": evaluation.works,
    }


def report(
    evaluation: Evaluation, metric: str, direction: int, prompts: list[str], calibration: Calibration
) -> dict[str, Any]:
    """Return the headline, dose-response, every random direction, samples, and the calibration's trials."""
    strengths = {0.0: evaluation.unsteered, **evaluation.by_strength}
    return {
        "headline": headline(evaluation, metric, direction),
        "dose_response": [
            {"strength": strength, "score": rounded(direction * outcome.score), **fluency(outcome)}
            for strength, outcome in sorted(strengths.items())
        ],
        "random_scores": [rounded(direction * outcome.score) for outcome in evaluation.random],
        "samples": samples(evaluation, prompts),
        "calibration": trials(calibration),
    }


def samples(evaluation: Evaluation, prompts: list[str]) -> list[dict[str, str]]:
    """Return the first items' answers side by side."""
    return [
        {
            "prompt": prompt,
            "unsteered": evaluation.unsteered.answers[item],
            **{f"strength {s:+g}": outcome.answers[item] for s, outcome in evaluation.by_strength.items()},
        }
        for item, prompt in enumerate(prompts[:SAMPLES])
    ]


def trials(calibration: Calibration) -> list[dict[str, Any]]:
    return [
        {
            "layers": list(trial.setting.layers),
            "dose": trial.setting.dose,
            "effect": rounded(trial.effect),
            "log_probability": rounded(trial.log_probability),
            "distinct_2": rounded(trial.distinct_2),
            "admitted": trial.admitted,
        }
        for trial in calibration.trials
    ]


def fluency(outcome: Outcome) -> dict[str, float]:
    found: Fluency | None = outcome.fluency
    if found is None:
        return {}
    return {"log_probability": rounded(found.log_probability), "distinct_2": rounded(found.distinct_2)}


def interval(found: Interval) -> dict[str, float]:
    return {name: rounded(value) for name, value in asdict(found).items()}


def rounded(value: float) -> float:
    return round(value, 4)
