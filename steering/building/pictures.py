"""Pictures of a report as PNG bytes: dose-response, effect by block, and tokens coloured by score."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from steering.building.drawing import INK, as_png, tidy
from steering.building.token_heatmap import token_heatmap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
Report = Mapping[str, Any]

STEERED, RANDOM, DAMAGE, CONTROL = "#1f6f8b", "#9a9a9a", "#b5651d", "#7b3294"
CONTROL_MARKS = ("D", "^", "x", "v")
DOSE_COLOURS = (
    "#c6dbef",
    "#9ecae1",
    "#6baed6",
    "#4292c6",
    "#2171b5",
    "#08519c",
    "#08306b",
    "#000000",
)

METRIC_UNITS = {"margin": "margin (nats per token)"}
COSTS = {
    "loss": "Damage: loss on neutral text",
    "log_probability": "Damage: log-probability of the answers under the unsteered model",
}


def pictures(report: Report, dev_items: int | None = None) -> dict[str, bytes]:
    """Return file name -> PNG of every picture that the report has the numbers for.

    dev_items: how many items each calibration trial was measured on.
    """
    found = {}
    if report.get("dose_response"):
        found["dose_response.png"] = dose_response(report)
    if report.get("calibration"):
        found["effect_by_block.png"] = effect_by_block(report, dev_items)
    if report.get("attributions"):
        found["tokens.png"] = token_heatmap(report)
    return found


def dose_response(report: Report) -> bytes:
    """Draw the score by strength with its 95% intervals, and below it what the text costs."""
    from matplotlib.figure import Figure

    points = sorted(report["dose_response"], key=lambda point: point["strength"])
    strengths = [point["strength"] for point in points]
    cost = damage(points)
    figure = Figure(figsize=(6.4, 5.2 if cost else 3.6), layout="constrained")
    panels = figure.subplots(
        2 if cost else 1, 1, sharex=True, squeeze=False, height_ratios=(2, 1) if cost else None
    )[:, 0]
    draw_scores(panels[0], points, report)
    if cost:
        draw_damage(panels[1], points, *cost)
    panels[-1].set_xlabel("strength (1 is the calibrated dose)", color=INK)
    panels[-1].set_xticks(strengths, [f"{strength:+g}" if strength else "0" for strength in strengths])
    return as_png(figure)


def draw_scores(panel: "Axes", points: Sequence[Report], report: Report) -> None:
    head = report.get("headline", {})
    strengths = [point["strength"] for point in points]
    draw_intervals(panel, points, head)
    unsteered = next((point["score"] for point in points if point["strength"] == 0), None)
    if unsteered is not None:
        panel.axhline(unsteered, color=INK, linewidth=0.9, linestyle="--", label="unsteered")
    draw_random(panel, report.get("random_scores", []), spread=0.02 * (max(strengths) - min(strengths)))
    panel.plot(strengths, [point["score"] for point in points], "o-", color=STEERED, label="steered")
    draw_controls(panel, report.get("controls") or {})
    metric = head.get("metric", "score")
    panel.set_ylabel(METRIC_UNITS.get(metric, f"{metric} score"), color=INK, parse_math=False)
    items = f", {head['items']} held-out items" if "items" in head else ""
    # The legend stands between the title and the picture: one line of marks, or two.
    pad = 36 if report.get("controls") else 24
    panel.set_title(f"Score by strength{items}", fontsize=11, color=INK, loc="left", pad=pad)
    panel.legend(
        fontsize=8,
        frameon=False,
        ncols=4,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.3,
        borderpad=0,
    )
    tidy(panel)


def draw_intervals(panel: "Axes", points: Sequence[Report], head: Report) -> None:
    """Draw a band where every strength has an interval, bars where only some do."""
    found = intervals(points, head)
    if not found:
        return
    strengths, lows, highs = (list(column) for column in zip(*found, strict=True))
    if len(found) == len(points):
        panel.fill_between(
            strengths, lows, highs, color=STEERED, alpha=0.18, linewidth=0, label="95% interval"
        )
    else:
        panel.vlines(strengths, lows, highs, color=STEERED, alpha=0.35, linewidth=5, label="95% interval")


def intervals(points: Sequence[Report], head: Report) -> list[tuple[float, float, float]]:
    """Return (strength, low, high) of the score, in the metric's own sign, where its effect has an interval.

    A report gives the interval of the difference from unsteered, counted towards the behaviour: at a point
    as `effect`, or in the headline for strengths 1 and -1. The unsteered score differs from itself by 0.
    """
    named = {1.0: head.get("effect"), -1.0: head.get("effect_away")}
    effects = {point["strength"]: point.get("effect") or named.get(point["strength"]) for point in points}
    scores = {point["strength"]: point["score"] for point in points}
    known = {s: effect for s, effect in effects.items() if s != 0 and isinstance(effect, Mapping)}
    if not known or 0 not in scores:
        return []
    clearest = max(known, key=lambda strength: abs(known[strength]["mean"]))
    sign = 1 if (scores[clearest] - scores[0]) * known[clearest]["mean"] >= 0 else -1
    ends = {
        s: sorted(scores[0] + sign * effect[end] for end in ("low", "high")) for s, effect in known.items()
    }
    ends[0.0] = [scores[0], scores[0]]
    return [(strength, *ends[strength]) for strength in sorted(ends)]


def draw_random(panel: "Axes", scores: Sequence[float], spread: float) -> None:
    """Draw the random directions at strength 1, side by side so that equal ones stay apart."""
    if not scores:
        return
    middle = (len(scores) - 1) / 2 or 1
    places = [1 + spread * (place - middle) / middle for place in range(len(scores))]
    label = f"{len(scores)} random directions"
    panel.plot(places, scores, "o", color=RANDOM, markersize=4, alpha=0.8, linewidth=0, label=label)


def draw_controls(panel: "Axes", controls: Report) -> None:
    """Draw what other ways found in the same pairs, at strength 1; each with a mark of its own."""
    for (name, control), mark in zip(controls.items(), cycle(CONTROL_MARKS), strict=False):
        panel.plot([1], [control["score"]], mark, color=CONTROL, markersize=6, label=name.replace("_", " "))


def damage(points: Sequence[Report]) -> tuple[str, str] | None:
    """Return the key and the label of what steering costs, or None where no point says it."""
    for key, label in COSTS.items():
        if any(key in point for point in points):
            return key, label
    return None


def draw_damage(panel: "Axes", points: Sequence[Report], key: str, label: str) -> None:
    told = [(point["strength"], point[key]) for point in points if key in point]
    panel.plot(*zip(*told, strict=True), "s-", color=DAMAGE, markersize=5)
    unsteered = dict(told).get(0.0)
    if unsteered is not None:
        panel.axhline(unsteered, color=INK, linewidth=0.9, linestyle="--")
    panel.set_ylabel("nats per token", color=INK)
    panel.set_title(label, fontsize=9, color=INK, loc="left")
    tidy(panel)


def effect_by_block(report: Report, dev_items: int | None = None) -> bytes:
    """Draw the calibration's trials: effect by block, one line per dose; hollow where the bound broke.

    Several blocks at once stand on the right, each trial for itself.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    panel = figure.subplots()
    trials = sorted(report["calibration"], key=lambda trial: (len(trial["layers"]), trial["layers"]))
    blocks = list(dict.fromkeys(block_name(trial) for trial in trials))
    for place, dose in enumerate(sorted({trial["dose"] for trial in trials})):
        tried = [trial for trial in trials if trial["dose"] == dose]
        draw_dose(panel, blocks, tried, DOSE_COLOURS[place % len(DOSE_COLOURS)])
    panel.axhline(0, color=RANDOM, linewidth=0.8, linestyle=":")
    panel.set_xticks(range(len(blocks)), blocks)
    panel.margins(x=0.12)
    panel.set_xlabel("steered block", color=INK)
    panel.set_ylabel("effect: score minus unsteered,\ntowards the behaviour", color=INK)
    items = f", {dev_items} items" if dev_items else ""
    panel.set_title(f"Effect by block and dose{items}", fontsize=11, color=INK, loc="left")
    explain_doses(panel, trials)
    tidy(panel)
    return as_png(figure)


def block_name(trial: Report) -> str:
    return "+".join(map(str, trial["layers"]))


def draw_dose(panel: "Axes", blocks: Sequence[str], trials: Sequence[Report], shade: str) -> None:
    places = [blocks.index(block_name(trial)) for trial in trials]
    alone = [trial for trial in trials if len(trial["layers"]) == 1]
    line = [blocks.index(block_name(trial)) for trial in alone]
    panel.plot(line, [trial["effect"] for trial in alone], "-", color=shade, linewidth=1.4, zorder=2)
    for place, trial in zip(places, trials, strict=True):
        fill = shade if trial["admitted"] else "white"
        panel.plot([place], [trial["effect"]], "o", color=shade, markerfacecolor=fill, markersize=7, zorder=3)
    panel.plot([], [], "o-", color=shade, label=f"dose {trials[0]['dose']:g}")


def explain_doses(panel: "Axes", trials: Sequence[Report]) -> None:
    """Add the legend, which says what hollow means only where something is hollow."""
    if not all(trial["admitted"] for trial in trials):
        panel.plot([], [], "o", color=INK, markerfacecolor="white", label="broke the damage bound")
    panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
