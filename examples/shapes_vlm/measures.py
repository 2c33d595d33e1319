"""Answers become numbers here: hallucination, recall, accuracy, each with a 95% interval."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from shapes_vlm.questions import Purpose, Question
from shapes_vlm.scenes import COLOURS, SHAPES, Kind, Scene
from shapes_vlm.vocabulary import NUMBERS

# What is measured, and how it is called in a table.
TITLES = {
    "adversarial_hallucination": "says yes to an absent object whose partner is there",
    "random_hallucination": "says yes to an absent object whose partner is absent too",
    "existence_recall": "says yes to an object that is there",
    "existence_accuracy": "answers these three questions truly",
    "chair_s": "CHAIR-s: lists that name an absent object",
    "chair_i": "CHAIR-i: named objects that are absent",
    "list_recall": "objects that their list names",
    "counting_accuracy": "counts truly",
    "unreadable": "answers that are neither yes nor no, no list, no number",
}
NORMAL = 1.959964
RESAMPLES = 2000
NAMED = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the scene it is about and the answer that was given."""

    scene: Scene
    question: Question
    answer: str


@dataclass(frozen=True, slots=True)
class Measure:
    """A share with its 95% interval; n: the answers that it rests on."""

    share: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Named:
    """How many kinds a list names truly and falsely, and how many the scene has."""

    true: int
    false: int
    there: int


def measure(asked: Sequence[Asked]) -> dict[str, Measure]:
    """Return all of TITLES; every purpose must have been asked for."""
    tempting, absent, present, listing, counting = (
        [one for one in asked if one.question.purpose == purpose] for purpose in PURPOSES
    )
    names = [count_names(one) for one in listing]
    return {
        "adversarial_hallucination": wilson([word(one) == "yes" for one in tempting]),
        "random_hallucination": wilson([word(one) == "yes" for one in absent]),
        "existence_recall": wilson([word(one) == "yes" for one in present]),
        "existence_accuracy": wilson([is_true(one) for one in [*tempting, *absent, *present]]),
        "chair_s": wilson([named.false > 0 for named in names]),
        "chair_i": bootstrap([(named.false, named.true + named.false) for named in names]),
        "list_recall": bootstrap([(named.true, named.there) for named in names]),
        "counting_accuracy": wilson([is_true(one) for one in counting]),
        "unreadable": wilson([not is_readable(one) for one in asked]),
    }


PURPOSES: tuple[Purpose, ...] = ("tempting", "absent", "present", "listing", "counting")


def word(one: Asked) -> str:
    """Return the answer's first word; nothing where there is none."""
    found = re.search(r"\w+", one.answer.lower())
    return found.group() if found else ""


def is_true(one: Asked) -> bool:
    """Return whether a one-word answer is the expected one."""
    return word(one) == one.question.answer


def is_readable(one: Asked) -> bool:
    """Return whether an answer has the form that its question asks for."""
    if one.question.purpose == "listing":
        return bool(kinds_named(one.answer))
    return word(one) in (NUMBERS if one.question.purpose == "counting" else ("yes", "no"))


def kinds_named(answer: str) -> set[Kind]:
    """Return the kinds that a list names, each once."""
    return {Kind(colour, shape) for colour, shape in NAMED.findall(answer.lower())}


def count_names(one: Asked) -> Named:
    told, there = kinds_named(one.answer), set(one.scene.kinds)
    return Named(true=len(told & there), false=len(told - there), there=len(there))


def wilson(hits: Sequence[bool]) -> Measure:
    """Return a share of independent answers with Wilson's interval, which also holds at 0 and 1."""
    n, square = len(hits), NORMAL**2
    share = sum(hits) / n
    middle = share + square / (2 * n)
    half = NORMAL * sqrt(share * (1 - share) / n + square / (4 * n * n))
    scale = 1 + square / n
    return Measure(share, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), n)


def bootstrap(counts: Sequence[tuple[int, int]]) -> Measure:
    """Return a share of objects with an interval over resampled answers, as objects of one list depend.

    counts: hits, and what they are counted against, for each answer. Where all answers agree there is
    nothing to resample: then the interval is Wilson's, an answer counting once.
    """
    hits, total = (sum(column) for column in zip(*counts, strict=True))
    if hits in (0, total):
        return wilson([hits > 0] * len(counts))
    picks = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    resampled = np.array(counts)[picks].sum(axis=1)
    low, high = np.quantile(resampled[:, 0] / np.maximum(resampled[:, 1], 1), [0.025, 0.975])
    return Measure(hits / total, float(low), float(high), len(counts))
