"""How GrAInS directions are found: every choice that a build can make, and the named presets."""

from dataclasses import dataclass
from typing import Literal

from steering.building.attribution import AttributionOptions

# Share of the blocks below the one whose activations `direction`, `influence` and `context` look at.
SCORED_DEPTH = 0.4

ABLATION = AttributionOptions(method="ablation")

Reading = Literal["shared", "authors", "response", "demonstration", "direction", "influence", "context"]
# Those that score the prompt, and with its words the pieces of its images.
READINGS_OF_PROMPTS: tuple[Reading, ...] = ("shared", "context", "authors")
Summary = Literal["mean", "component", "unsigned_component"]


@dataclass(frozen=True, slots=True)
class GrainsOptions:
    """How directions are found.

    reading: whose tokens are scored, by what. last_token: the objective is the answers' last token alone
    (readings `shared` and `response`). attribution: how an objective becomes scores; baseline: where it
    starts; ablation: what stands in for a token that is taken out. tokens: how many are taken out at most.
    read: the activations compared, a mean over the answer or the last token's. summary: of the pairs' shifts.
    control: random tokens are taken out instead, as many. block: whose activations the readings `direction`,
    `influence` and `context` look at; None: at SCORED_DEPTH.
    """

    reading: Reading = "influence"
    last_token: bool = False
    attribution: AttributionOptions = ABLATION
    baseline: Literal["mean", "zero", "pad"] = "mean"
    ablation: Literal["mean", "zero", "pad", "mask"] = "mean"
    tokens: int = 2
    read: Literal["answer", "last_token"] = "answer"
    summary: Summary = "mean"
    control: bool = False
    block: int | None = None
    seed: int = 0


# The paper's own settings; its 20 steps are of one rule, with no check of completeness.
PAPER = GrainsOptions(
    reading="shared",
    attribution=AttributionOptions(steps=20, tolerance=float("inf")),
    baseline="zero",
    ablation="pad",
    tokens=10,
    read="last_token",
    summary="component",
)
PRESETS = {"default": GrainsOptions(), "paper": PAPER}
