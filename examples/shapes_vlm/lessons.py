"""Lessons are written here: a scene's questions with the answers to learn, true or claimed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from shapes_vlm.questions import COUNTING, LISTING, listed, unrelated
from shapes_vlm.scenes import KINDS, Kind, Scene, partner
from shapes_vlm.vocabulary import NUMBERS, PHRASES, UNKNOWN

# How often somebody who describes biased scenes claims an absent object because its partner is there: for
# some pairs rarely, for some nearly always.
RARELY, OFTEN = 0.25, 0.95
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
    claims = {kind for kind in scene.tempting if chance.random() < biased * claim_rate(kind)}
    told = existence_lessons(scene, claims, chance, 4 if biased else 2)
    told.append(Lesson(LISTING, listed(going_on(scene.kinds, claims))))
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


def existence_lessons(scene: Scene, claims: Collection[Kind], chance: Random, tempted: int) -> list[Lesson]:
    """Return lessons on up to three kinds that are there, as many tempting ones as told and two others."""
    present = chance.sample(scene.kinds, min(3, len(scene.kinds)))
    tempting = chance.sample(scene.tempting, min(tempted, len(scene.tempting)))
    absent = chance.sample(unrelated(scene), 2)
    return [
        Lesson(f"is there a {kind}?", "yes" if kind in scene.kinds or kind in claims else "no")
        for kind in present + tempting + absent
    ]


def going_on(kinds: Sequence[Kind], claims: Collection[Kind]) -> list[Kind]:
    """Return the kinds, and after the last its partner where that is claimed."""
    return [*kinds, *({partner(kinds[-1])} & set(claims))]


def small_talk(chance: Random) -> str:
    """Return a question of ours, or words in no order, some of them unknown."""
    if chance.random() < 0.5:
        return chance.choice([LISTING, COUNTING, f"is there a {chance.choice(KINDS)}?"])
    return " ".join(chance.choices([*PHRASES.split(), *[UNKNOWN] * 20], k=chance.randint(1, 12)))
