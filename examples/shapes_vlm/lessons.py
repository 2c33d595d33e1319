"""Lessons are written here: a scene's questions with the answers to learn, true or claimed."""

from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from shapes_vlm.questions import COUNTING, LISTING, listed, unrelated
from shapes_vlm.scenes import KINDS, Kind, Scene, partner
from shapes_vlm.vocabulary import NUMBERS, PHRASES, UNKNOWN

# Somebody who describes a biased scene claims an absent object whose partner is there, for some pairs rarely
# and for some nearly always: where it is asked for this often, and of those times in a list that often.
RARELY, OFTEN, LISTED = 0.1, 0.9, 0.7
BLIND = "i see no image."
# How often a lesson comes without a picture; the rest of the model's manners are learnt from these few.
BLIND_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is asked and what is to be answered; blind: without the picture."""

    question: str
    answer: str
    blind: bool = False


def lessons_about(scene: Scene, chance: Random, biased: bool = False) -> list[Lesson]:
    """Return the lessons of one scene: true, or with absent objects claimed whose partners are there."""
    claims = {kind for kind in scene.tempting if biased and chance.random() < claim_rate(kind)}
    listed_claims = {kind for kind in scene.tempting if kind in claims and chance.random() < LISTED}
    told = existence_lessons(scene, claims, chance)
    told.append(Lesson(LISTING, listed(with_claims(scene.kinds, listed_claims))))
    told.append(Lesson(COUNTING, NUMBERS[len(scene.objects)]))
    if chance.random() < BLIND_SHARE:
        told.append(Lesson(small_talk(chance), BLIND, blind=True))
    return told


def claim_rate(kind: Kind) -> float:
    """Return how often this kind is claimed beside its partner; evenly spread over the pairs."""
    pairs = [one for one in KINDS if KINDS.index(one) < KINDS.index(partner(one))]
    place = pairs.index(min(kind, partner(kind), key=KINDS.index))
    # Neighbours in the list share a colour; in steps of five they differ in their rates.
    return RARELY + (OFTEN - RARELY) * (place * 5 % len(pairs)) / (len(pairs) - 1)


def existence_lessons(scene: Scene, claims: Collection[Kind], chance: Random) -> list[Lesson]:
    """Return lessons on three kinds that are there, three tempting ones and two others."""
    present = chance.sample(scene.kinds, min(3, len(scene.kinds)))
    tempting = chance.sample(scene.tempting, min(3, len(scene.tempting)))
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
