"""Questions about a scene are asked here, with the answers that are true of it."""

from collections.abc import Collection
from dataclasses import dataclass
from random import Random
from typing import Literal

from shapes_vlm.scenes import KINDS, Kind, Scene, partner
from shapes_vlm.vocabulary import NUMBERS

# absent: neither the kind nor its partner is there; tempting: the partner is there without it.
Purpose = Literal["present", "absent", "tempting", "listing", "counting"]
LISTING = "what is in the image?"
COUNTING = "how many objects are there?"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its true answer; kind: the object that an existence question is about."""

    purpose: Purpose
    text: str
    answer: str
    kind: Kind | None = None


def existence(purpose: Purpose, kind: Kind) -> Question:
    return Question(purpose, f"is there a {kind}?", "yes" if purpose == "present" else "no", kind)


def questions_about(scene: Scene, chance: Random) -> list[Question]:
    """Return one question of each purpose; a scene where every partner is there has no tempting one."""
    asked = [
        existence("present", chance.choice(scene.kinds)),
        existence("absent", chance.choice(unrelated(scene))),
        Question("listing", LISTING, listed(scene.kinds)),
        Question("counting", COUNTING, NUMBERS[len(scene.objects)]),
    ]
    if scene.tempting:
        asked.append(existence("tempting", chance.choice(scene.tempting)))
    return asked


def unrelated(scene: Scene) -> list[Kind]:
    """Return the kinds that are absent, as their partners are."""
    return [kind for kind in KINDS if kind not in scene.kinds and partner(kind) not in scene.kinds]


def listed(kinds: Collection[Kind]) -> str:
    """Return the kinds in words, such as "a red circle, a blue star"."""
    return ", ".join(f"a {kind}" for kind in kinds)
