"""Scores of a text: how much of a behaviour it shows."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steering.errors import InvalidRequest

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class Metric:
    """score maps a text to a number; direction is 1 where more of it is more of the behaviour, else -1."""

    name: str
    description: str
    score: Callable[[str], float]
    direction: int


def read_metric(path: Path) -> Metric:
    """Return the metric of a JSON file {"name", "description", "metric": {"kind", ...}}.

    Kinds: `lexicon` and `regex`, positive minus negative matches per 100 words, and `length`, the number
    of words, of which fewer are better unless "direction" is 1. Raises InvalidRequest with the reason.
    """
    try:
        return parse_metric(json.loads(path.read_bytes()))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, re.error) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidRequest(f"{path} is not a metric ({reason}); kinds are {', '.join(KINDS)}") from error


def parse_metric(record: dict[str, Any]) -> Metric:
    definition = record["metric"]
    kind = definition["kind"]
    direction = int(definition.get("direction", -1 if kind == "length" else 1))
    return Metric(record["name"], record.get("description", ""), KINDS[kind](definition), direction)


def read_words(text: str) -> list[str]:
    return WORD.findall(text)


def lexicon_metric(definition: dict[str, Any]) -> Callable[[str], float]:
    positive = {word.casefold() for word in definition["positive"]}
    negative = {word.casefold() for word in definition["negative"]}

    def score(text: str) -> float:
        words = [word.casefold() for word in read_words(text)]
        matched = sum(word in positive for word in words) - sum(word in negative for word in words)
        return 100 * matched / max(len(words), 1)

    return score


def regex_metric(definition: dict[str, Any]) -> Callable[[str], float]:
    positive = [re.compile(pattern) for pattern in definition["positive"]]
    negative = [re.compile(pattern) for pattern in definition["negative"]]

    def score(text: str) -> float:
        matched = sum(matches(p, text) for p in positive) - sum(matches(p, text) for p in negative)
        return 100 * matched / max(len(read_words(text)), 1)

    return score


def matches(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def length_metric(_definition: dict[str, Any]) -> Callable[[str], float]:
    def score(text: str) -> float:
        return float(len(read_words(text)))

    return score


KINDS: dict[str, Callable[[dict[str, Any]], Callable[[str], float]]] = {
    "lexicon": lexicon_metric,
    "regex": regex_metric,
    "length": length_metric,
}
