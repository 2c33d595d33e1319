"""Scores of a text: how much of a behaviour it shows."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from steering.building.classifying import log_odds
from steering.errors import InvalidRequest
from steering.loading import LoadedModel

WORD = regex.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

# (model, answers) -> a number for each answer; only some kinds ask the model, which nothing steers then.
Scorer = Callable[[LoadedModel, Sequence[str]], list[float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """score gives answers numbers; direction is 1 where more of it is more of the behaviour, else -1."""

    name: str
    description: str
    score: Scorer
    direction: int


SECONDS_PER_TEXT = 5.0
METRIC_SHAPE = '{"name": ..., "metric": {"kind": ...}}'


def read_metric(path: Path) -> Metric:
    """Return the metric of a JSON file {"name", "description", "metric": {"kind", ...}}.

    Kinds: `lexicon` and `regex`, positive minus negative matches per 100 words; `length`, the number
    of words, of which fewer are better unless "direction" is 1; `logits`, the model's own log p(yes) -
    log p(no) after a "question" about the answer. Raises InvalidRequest with the reason.
    """
    try:
        return parse_metric(json.loads(path.read_bytes()))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from error
    except KeyError as error:
        raise InvalidRequest(
            f"{path} is not a metric: {error} is missing or unknown; it needs {METRIC_SHAPE}; kinds are "
            f"{', '.join(KINDS)}"
        ) from error
    except (ValueError, TypeError, AttributeError, RecursionError, regex.error) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidRequest(f"{path} is not a metric ({reason}); kinds are {', '.join(KINDS)}") from error


def parse_metric(record: Any) -> Metric:
    if not isinstance(record, dict) or not isinstance(record["metric"], dict):
        raise TypeError(f"it needs {METRIC_SHAPE}")
    definition = record["metric"]
    kind = definition["kind"]
    direction = definition.get("direction", -1 if kind == "length" else 1)
    if direction not in (1, -1):
        raise ValueError("'direction' must be 1 or -1")
    if not isinstance(record["name"], str) or not isinstance(record.get("description", ""), str):
        raise TypeError("'name' and 'description' must be texts")
    return Metric(record["name"], record.get("description", ""), KINDS[kind](definition), int(direction))


def read_words(text: str) -> list[str]:
    return WORD.findall(text)


def each(score: Callable[[str], float]) -> Scorer:
    """Return the scorer of a text alone, which asks no model."""
    return lambda _loaded, answers: [score(answer) for answer in answers]


def lexicon_metric(definition: dict[str, Any]) -> Scorer:
    positive, negative = ({word.casefold() for word in side} for side in both_sides(definition))
    for entry in positive | negative:
        if read_words(entry) != [entry]:
            raise ValueError(f"{entry!r} is no single word of letters: no word can match it; see 'regex'")

    def score(text: str) -> float:
        words = [word.casefold() for word in read_words(text)]
        matched = sum(word in positive for word in words) - sum(word in negative for word in words)
        return 100 * matched / max(len(words), 1)

    return each(score)


def regex_metric(definition: dict[str, Any]) -> Scorer:
    positive, negative = ([regex.compile(pattern) for pattern in side] for side in both_sides(definition))
    for pattern in [*positive, *negative]:
        if pattern.search(""):
            raise ValueError(f"{pattern.pattern!r} matches nothing at all, which is everywhere")

    def score(text: str) -> float:
        matched = sum(matches(p, text) for p in positive) - sum(matches(p, text) for p in negative)
        return 100 * matched / max(len(read_words(text)), 1)

    return each(score)


def both_sides(definition: dict[str, Any]) -> list[list[str]]:
    """Return the lists of positive and negative texts, one of which may be empty."""
    sides = [definition["positive"], definition["negative"]]
    for side in sides:
        if not isinstance(side, list) or not all(isinstance(text, str) and text for text in side):
            raise TypeError("'positive' and 'negative' must be lists of texts")
    if not any(sides):
        raise ValueError("'positive' and 'negative' are both empty: every score would be 0")
    return sides


def matches(pattern: "regex.Pattern[str]", text: str) -> int:
    try:
        return sum(1 for _ in pattern.finditer(text, timeout=SECONDS_PER_TEXT))
    except TimeoutError as error:
        raise InvalidRequest(
            f"the metric's pattern {pattern.pattern!r} takes longer than {SECONDS_PER_TEXT:g} s on one "
            "answer; it repeats what already repeats: write it simpler"
        ) from error


def length_metric(_definition: dict[str, Any]) -> Scorer:
    def score(text: str) -> float:
        return float(len(read_words(text)))

    return each(score)


def logits_metric(definition: dict[str, Any]) -> Scorer:
    question, yes, no = (definition[key] for key in ("question", "yes", "no"))
    if not all(isinstance(text, str) and text.strip() for text in (question, yes, no)) or yes == no:
        raise ValueError("'question', 'yes' and 'no' must be texts, the last two different")
    return lambda loaded, answers: log_odds(loaded, answers, question, yes, no)


KINDS: dict[str, Callable[[dict[str, Any]], Scorer]] = {
    "lexicon": lexicon_metric,
    "regex": regex_metric,
    "length": length_metric,
    "logits": logits_metric,
}
