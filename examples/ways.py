"""The ways to build a GrAInS vector that examples/study.py compares."""

from dataclasses import replace

from steering.building.attribution import AttributionOptions
from steering.building.grains_options import PAPER, GrainsOptions

MOST_TOKENS = 8
DEFAULT = GrainsOptions(tokens=MOST_TOKENS)
INTEGRATED = replace(DEFAULT, attribution=AttributionOptions())
WAYS: dict[str, GrainsOptions] = {
    # The default, and what it does with one choice made otherwise.
    "influence": DEFAULT,
    "zero baseline": replace(DEFAULT, baseline="zero"),
    "pad baseline": replace(DEFAULT, baseline="pad"),
    "zero ablation": replace(DEFAULT, ablation="zero"),
    "pad ablation": replace(DEFAULT, ablation="pad"),
    "masked": replace(DEFAULT, ablation="mask"),
    "last token": replace(DEFAULT, read="last_token"),
    "component": replace(DEFAULT, summary="component"),
    "integrated influence": INTEGRATED,
    "direction": replace(DEFAULT, reading="direction"),
    "integrated direction": replace(INTEGRATED, reading="direction"),
    "response": replace(DEFAULT, reading="response"),
    "integrated response": replace(INTEGRATED, reading="response"),
    "demonstration": replace(DEFAULT, reading="demonstration"),
    "shared": replace(DEFAULT, reading="shared"),
    "authors": replace(DEFAULT, reading="authors"),
    "paper": PAPER,
    "random": replace(DEFAULT, control=True),
}
