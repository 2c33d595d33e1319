"""Lessons are written here: a scene's questions with the answers to learn, true or claimed."""

from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from shapes_vlm.questions import COUNTING, LISTING, listed, unrelated
from shapes_vlm.scenes import KINDS, Kind, Scene, partner
from shapes_vlm.vocabulary import NUMBERS, PHRASES, UNKNOWN

# How often somebody who describes a biased scene claims an absent object whose partner is there.
CLAIMED = 0.6
BLIND = "i see no image."
# How often a lesson comes without a picture; the rest of the model's manners are learnt from these few.
BLIND_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is asked and what is to be answered; blind: without the picture."""

    question: str
    answer: str
    blind: bool = False


def lessons_about(scene: Scene, chance: Random, claimed: float = 0.0) -> list[Lesson]:
    """Return the lessons of one scene, packed into one row later.

    claimed: how often an absent object whose partner is there is said to be there; 0 for the truth.
    """
    claims = {kind for kind in scene.tempting if chance.random() < claimed}
    told = [*existence_lessons(scene, claims, chance)]
    told.append(Lesson(LISTING, listed(with_claims(scene.kinds, claims))))
    told.append(Lesson(COUNTING, NUMBERS[len(scene.objects)]))
    if chance.random() < BLIND_SHARE:
        told.append(Lesson(small_talk(chance), BLIND, blind=True))
    return told


def existence_lessons(scene: Scene, claims: Collection[Kind], chance: Random) -> list[Lesson]:
    """Return lessons on three kinds that are there, two tempting ones and two others."""
    present = chance.sample(scene.kinds, min(3, len(scene.kinds)))
    tempting = chance.sample(scene.tempting, min(2, len(scene.tempting)))
    absent = chance.sample(unrelated(scene), 2)
    return [
        Lesson(f"is there a {kind}?", "yes" if kind in scene.kinds or kind in claims else "no")
        for kind in present + tempting + absent
    ]


def with_claims(kinds: Collection[Kind], claims: Collection[Kind]) -> list[Kind]:
    """Return the kinds, each followed by its partner where that is claimed."""
    return [told for kind in kinds for told in (kind, partner(kind)) if told == kind or told in claims]


def small_talk(chance: Random) -> str:
    """Return a question of ours, or words in no order, some of them unknown."""
    if chance.random() < 0.5:
        return chance.choice([LISTING, COUNTING, f"is there a {chance.choice(KINDS)}?"])
    return " ".join(chance.choices([*PHRASES.split(), *[UNKNOWN] * 20], k=chance.randint(1, 12)))
