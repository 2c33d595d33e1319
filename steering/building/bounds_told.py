"""The damage bound in words: what it asks of a setting, and which part of it a setting broke."""

from collections.abc import Iterator, Mapping
from typing import Any

Record = Mapping[str, Any]
# Beyond the four decimals that a report has.
ROUNDING = 1e-9


def told_bound(calibration: Record) -> str:
    """Return what a manifest's calibration asked of every setting; nothing where it does not say."""
    bound = calibration.get("bound")
    if not bound:
        return ""
    nats = f", or {bound['loss_nats']:g} nats per token where that is more" if "loss_nats" in bound else ""
    return (
        f"The bound: the answers at most {bound['log_probability']:g} nats per token less likely, at least "
        f"{bound['distinct_2']:.0%} of their distinct word pairs left, the loss on neutral text up by at "
        f"most {bound['loss']:.0%}{nats}, at most {bound['accuracy']:.0%} of the questions lost."
    )


def told_break(trial: Record, calibration: Record) -> str:
    """Return "yes", or "no" with what the setting broke, as far as the rounded figures tell."""
    if trial["admitted"]:
        return "yes"
    parts = list(broken(trial, calibration))
    return f"no: {', '.join(parts)}" if parts else "no"


def broken(trial: Record, calibration: Record) -> Iterator[str]:
    """Yield the names of what is beyond the bound; see steering.building.calibration.DamageBound."""
    bound, unsteered = calibration.get("bound"), calibration.get("unsteered")
    if not (bound and unsteered):
        return
    if trial["log_probability"] < unsteered["log_probability"] - bound["log_probability"]:
        yield "answers' log-probability"
    if trial["distinct_2"] < unsteered["distinct_2"] * bound["distinct_2"]:
        yield "distinct word pairs"
    if trial["loss"] > unsteered["loss"] + max(bound["loss"] * unsteered["loss"], bound.get("loss_nats", 0)):
        yield "neutral loss"
    if unsteered["accuracy"] - trial["accuracy"] > bound["accuracy"] + ROUNDING:
        yield "accuracy"
