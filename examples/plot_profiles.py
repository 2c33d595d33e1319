"""Draw what the profiles that ship do at each strength, from their reports, into docs/profiles.png.

Run from the repository's root: python examples/plot_profiles.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

SHIPPED = Path("vector_store/shipped")
PICTURE = Path("docs/profiles.png")
STEERED, RANDOM, INK = "#1f6f8b", "#b8b8b8", "#333333"


def main() -> None:
    reports = {
        path.parents[1].name: json.loads(path.read_text()) for path in sorted(SHIPPED.glob("*/1/report.json"))
    }
    figure, panels = plt.subplots(1, len(reports), figsize=(3.4 * len(reports), 3.0), squeeze=False)
    for panel, (name, report) in zip(panels[0], reports.items(), strict=True):
        draw(panel, name, report)
    panels[0][0].set_ylabel("behaviour minus opposite, per 100 words", color=INK, fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=150)


def draw(panel: Axes, name: str, report: dict[str, Any]) -> None:
    """Draw the score by strength, and where random directions of the same length land at strength 1."""
    points = sorted((point["strength"], point["score"]) for point in report["dose_response"])
    random = report["random_scores"]
    panel.plot(
        [1.0] * len(random),
        random,
        "_",
        color=RANDOM,
        markersize=14,
        label=f"{len(random)} random directions",
    )
    panel.plot(*zip(*points, strict=True), "o-", color=STEERED, label=name)
    panel.axvline(0, color=RANDOM, linewidth=0.8, linestyle=":")
    panel.set_title(name, fontsize=11, color=INK)
    panel.set_xlabel("strength", fontsize=9, color=INK)
    panel.set_xticks([strength for strength, _ in points])
    panel.tick_params(labelsize=8, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7, frameon=False, loc="upper left")


if __name__ == "__main__":
    main()
