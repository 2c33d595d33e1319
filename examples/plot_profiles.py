"""Show what the profiles that ship do, from their reports: docs/profiles.png, and the README's table as text.

Run from the repository's root: python examples/plot_profiles.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

SHIPPED = Path("vector_store/shipped")
PICTURE = Path("docs/profiles.png")
STEERED, RANDOM, CONTROL, INK = "#1f6f8b", "#b8b8b8", "#7b3294", "#333333"
CONTROLS = {"mean_difference": "D", "random_tokens": "x"}
HEADINGS = (
    "profile",
    "unsteered",
    "strength 1",
    "difference [95%]",
    "strength −1",
    "mean difference",
    "random tokens",
    "strongest of 30 random directions",
    "neutral loss",
    "accuracy, points",
)


def main() -> None:
    reports = {
        path.parents[1].name: json.loads(path.read_text()) for path in sorted(SHIPPED.glob("*/1/report.json"))
    }
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for name, report in reports.items():
        print(f"| {' | '.join(cells(name, report['headline']))} |")
    figure, panels = plt.subplots(1, len(reports), figsize=(3.4 * len(reports), 3.2), squeeze=False)
    for panel, (name, report) in zip(panels[0], reports.items(), strict=True):
        draw(panel, name, report)
    panels[0][0].set_ylabel("behaviour minus opposite, per 100 words", color=INK, fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=150)


def cells(name: str, head: dict[str, Any]) -> list[str]:
    """Return one row of the README's table; costs are changes at strength 1."""
    effect, damage = head["effect"], head["damage"]
    loss = damage["steered"]["loss"] / damage["unsteered"]["loss"] - 1
    accuracy = damage["steered"]["accuracy"] - damage["unsteered"]["accuracy"]
    return [
        name,
        f"{head['unsteered']:.1f}",
        f"{head['steered']:.1f}",
        f"{effect['mean']:+.1f} [{effect['low']:.1f}, {effect['high']:.1f}]",
        f"{head['steered_away']:.1f}",
        *(f"{head['controls'][control]['score']:.1f}" for control in CONTROLS),
        f"{head['random']['strongest']:.1f}",
        f"{loss:+.1%}",
        f"{100 * accuracy:+.0f}",
    ]


def draw(panel: Axes, name: str, report: dict[str, Any]) -> None:
    """Draw the score by strength, and what is compared with it at strength 1."""
    points = sorted((point["strength"], point["score"]) for point in report["dose_response"])
    random = report["random_scores"]
    label = f"{len(random)} random directions"
    panel.plot([1.0] * len(random), random, "_", color=RANDOM, markersize=14, label=label)
    panel.plot(*zip(*points, strict=True), "o-", color=STEERED, markersize=5, label=name)
    for control, mark in CONTROLS.items():
        score = report["controls"][control]["score"]
        panel.plot([1.0], [score], mark, color=CONTROL, markersize=6, label=control.replace("_", " "))
    panel.axvline(0, color=RANDOM, linewidth=0.8, linestyle=":")
    panel.set_title(name, fontsize=11, color=INK)
    panel.set_xlabel("strength", fontsize=9, color=INK)
    panel.set_xticks([-2, -1, 0, 1, 2])
    panel.tick_params(labelsize=8, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7, frameon=False, loc="upper left")


if __name__ == "__main__":
    main()
