"""Steering as a string: `cheerful*0.8+formal@2`, read and written.

steering = term ("+" term)*
term     = name ["@" version] ["*" number]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from steering.errors import InvalidSteering
from vector_store.manifest import NAME_PATTERN
from vector_store.names import quoted

NAME = NAME_PATTERN.removeprefix("^").removesuffix("$")
VERSION = r"[1-9][0-9]{0,8}"
NUMBER = r"-?(?:[0-9]{1,40}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})"
PROFILE_PATTERN = re.compile(rf"(?P<name>{NAME})(?:@(?P<version>{VERSION}))?")
TERM_PATTERN = re.compile(rf"(?P<name>{NAME})(?:@(?P<version>{VERSION}))?(?:\*(?P<strength>{NUMBER}))?")
NUMBER_PATTERN = re.compile(NUMBER)
EXAMPLE = "write it like 'cheerful*0.8+formal@2'"


@dataclass(frozen=True, slots=True)
class WrittenTerm:
    """One term of a steering string; None where nothing is written."""

    name: str
    version: int | None = None
    strength: float | None = None


def parse_steering(text: str, param: str) -> tuple[WrittenTerm, ...]:
    """Return the terms of a steering string, or raise InvalidSteering on `param`."""
    if not text:
        raise InvalidSteering(f"the steering string is empty; {EXAMPLE}, or leave it out", param)
    return tuple(parse_term(term, param) for term in text.split("+"))


def parse_term(text: str, param: str) -> WrittenTerm:
    found = TERM_PATTERN.fullmatch(text)
    if found is None:
        raise InvalidSteering(f"{quoted(text)} is not a steering term; {EXAMPLE}", param)
    version, strength = found["version"], found["strength"]
    return WrittenTerm(
        found["name"],
        int(version) if version else None,
        float(strength) if strength else None,
    )


def parse_profile(text: str, param: str) -> tuple[str, int | None]:
    """Return name and version of `name` or `name@version`, or raise InvalidSteering on `param`."""
    found = PROFILE_PATTERN.fullmatch(text)
    if found is None:
        raise InvalidSteering(
            f"{quoted(text)} is not a profile: a name of lower-case letters, digits, '.', '_' and '-', "
            "then perhaps '@' and a version",
            param,
        )
    return found["name"], int(found["version"]) if found["version"] else None


def parse_strength(text: str, param: str) -> float:
    if NUMBER_PATTERN.fullmatch(text) is None:
        raise InvalidSteering(f"{quoted(text)} is not a strength; write it like 0.8 or -1", param)
    return float(text)


def written(terms: Sequence[WrittenTerm]) -> str:
    """Return the string that `parse_steering` reads as these terms."""
    return "+".join(written_term(term) for term in terms)


def written_term(term: WrittenTerm) -> str:
    version = "" if term.version is None else f"@{term.version}"
    strength = "" if term.strength is None else f"*{Decimal(repr(term.strength)):f}"
    return f"{term.name}{version}{strength}"
