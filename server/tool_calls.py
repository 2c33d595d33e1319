"""Calls in what a model writes: readers that take text as it comes and part words from calls."""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

OPEN, CLOSE = "<tool_call>", "</tool_call>"
DECODER = json.JSONDecoder()
# A call as far as its arguments, in the order of its schema.
BEGUN = re.compile(
    r'\s*\{\s*"name"\s*:\s*(?P<name>"[A-Za-z0-9_-]+")\s*,\s*"arguments"\s*:\s*(?P<arguments>.*)', re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Called:
    """A call, or more of one: id and name come with its beginning, arguments are JSON text."""

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None


Read = str | Called


class Reader(Protocol):
    """Takes the text of an answer piece by piece; nothing of it is lost."""

    def feed(self, text: str) -> Iterator[Read]:
        """Yield what became certain: words, and calls."""
        ...

    def end(self) -> Iterator[Read]:
        """Yield the rest, once the answer has ended."""
        ...

    @property
    def finish(self) -> str:
        """Return the finish reason of an answer that ended by itself."""
        ...


class PlainReader:
    """All is words."""

    finish = "stop"

    def feed(self, text: str) -> Iterator[Read]:
        if text:
            yield text

    def end(self) -> Iterator[Read]:
        yield from ()


class NamedReader:
    """All is the arguments of one call, whose name is known."""

    finish = "stop"  # as OpenAI's answers to a function that was named

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def feed(self, text: str) -> Iterator[Read]:
        if self._name is not None:
            yield Called(0, "", self._name, new_id())
            self._name = None
        if text:
            yield Called(0, text)

    def end(self) -> Iterator[Read]:
        yield from ()


@dataclass(slots=True)
class Calls:
    """The calls that were read so far, of functions that are known; at most one, or any number."""

    names: frozenset[str] | None = None
    many: bool = True
    count: int = 0

    def read(self, text: str) -> list[Called] | None:
        """Return the calls that the text holds, None where it is something else."""
        found = called(text)
        if not found or any(self.names is not None and name not in self.names for name, _ in found):
            return None
        room = len(found) if self.many else max(0, 1 - self.count)
        fresh = [
            Called(self.count + number, arguments, name, new_id())
            for number, (name, arguments) in enumerate(found[:room])
        ]
        self.count += len(fresh)
        return fresh


class WholeReader:
    """Holds an answer that may be a call, or several, until its end."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._held = ""

    @property
    def finish(self) -> str:
        return "tool_calls" if self._calls.count else "stop"

    def feed(self, text: str) -> Iterator[Read]:
        self._held += text
        yield from ()

    def end(self) -> Iterator[Read]:
        read = self._calls.read(self._held)
        if read is not None:
            yield from read
        elif self._held:
            yield self._held


class RequiredReader(WholeReader):
    """All is one call, kept to its shape; one that was cut off is as much of a call as there is."""

    def __init__(self) -> None:
        super().__init__(Calls())

    def end(self) -> Iterator[Read]:
        read = self._calls.read(self._held)
        begun = BEGUN.match(self._held)
        if read is not None:
            yield from read
        elif begun:
            yield Called(0, begun["arguments"], json.loads(begun["name"]), new_id())


class BareReader(WholeReader):
    """An answer that begins as JSON does is held: it may be calls; any other is words from the start."""

    def __init__(self, names: frozenset[str], many: bool) -> None:
        super().__init__(Calls(names, many))
        self._words = False

    def feed(self, text: str) -> Iterator[Read]:
        begun = (self._held + text).lstrip()
        if not self._words and (not begun or begun[0] in "[{"):
            self._held += text
            return
        self._words = True
        if self._held + text:
            yield self._held + text
        self._held = ""


@dataclass(slots=True)
class TaggedReader:
    """Words, and calls between tags; white space between words and a call is dropped."""

    names: frozenset[str]
    many: bool
    _held: str = ""
    _space: str = ""
    _inside: bool = False
    _calls: Calls = field(init=False)

    def __post_init__(self) -> None:
        self._calls = Calls(self.names, self.many)

    @property
    def finish(self) -> str:
        return "tool_calls" if self._calls.count else "stop"

    def feed(self, text: str) -> Iterator[Read]:
        self._held += text
        while (place := self._held.find(CLOSE if self._inside else OPEN)) >= 0:
            before = self._held[:place]
            if self._inside:
                yield from self._closed(before, CLOSE)
            else:
                words = before.rstrip()
                self._space = before[len(words) :]
                if words:
                    yield words
            self._held = self._held[place + len(CLOSE if self._inside else OPEN) :]
            self._inside = not self._inside
        if not self._inside:
            yield from self._certain()

    def end(self) -> Iterator[Read]:
        if self._inside:
            yield from self._closed(self._held, "")
        elif self._held.strip() or (self._held and not self._calls.count):
            yield self._held

    def _closed(self, text: str, close: str) -> Iterator[Read]:
        read = self._calls.read(text)
        if read is None:
            yield self._space + OPEN + text + close
        else:
            yield from read

    def _certain(self) -> Iterator[Read]:
        """Yield the words that can no longer begin a tag; white space around calls is held with them."""
        keep = max((n for n in range(1, len(OPEN)) if self._held.endswith(OPEN[:n])), default=0)
        words = self._held[: len(self._held) - keep]
        kept = len(words.rstrip())
        if words[:kept]:
            yield words[:kept]
            self._held = self._held[kept:]


def called(text: str) -> list[tuple[str, str]]:
    """Return the names and arguments of the calls that the text is, none where it is anything else."""
    try:
        value = json.loads(text)
        calls = elements(text.strip()) if isinstance(value, list) else [text.strip()]
        read = [call_of(call) for call in calls]
    except (ValueError, RecursionError):
        return []
    return [call for call in read if call is not None] if all(read) else []


def call_of(text: str) -> tuple[str, str] | None:
    """Return name and arguments, as they were written, of a call in one of the shapes that models write."""
    if not text.startswith("{"):
        return None
    parts = members(text)
    name = json.loads(parts.get("name", "null"))
    arguments = parts.get("arguments", parts.get("parameters", "{}"))
    value = json.loads(arguments)
    if isinstance(value, str):
        arguments, value = value, json.loads(value)
    if not isinstance(name, str) or not isinstance(value, dict):
        return None
    return name, arguments


def members(text: str) -> dict[str, str]:
    """Return the members of a JSON object, each value as it is written."""
    found: dict[str, str] = {}
    place = past_space(text, 1)
    while text[place] != "}":
        key, place = DECODER.raw_decode(text, place)
        value = past_space(text, past_space(text, place) + 1)
        _, place = DECODER.raw_decode(text, value)
        found[key] = text[value:place]
        place = past_comma(text, place)
    return found


def elements(text: str) -> list[str]:
    """Return the elements of a JSON array, each as it is written."""
    found: list[str] = []
    place = past_space(text, 1)
    while text[place] != "]":
        _, end = DECODER.raw_decode(text, place)
        found.append(text[place:end])
        place = past_comma(text, end)
    return found


def past_space(text: str, place: int) -> int:
    while text[place] in " \t\n\r":
        place += 1
    return place


def past_comma(text: str, place: int) -> int:
    place = past_space(text, place)
    return past_space(text, place + 1) if text[place] == "," else place


def new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
