"""Calls in what a model writes: readers that take text as it comes and part words from calls."""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.call_formats import CallFormat, json_calls

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# How models write calls that were taught no other way, between tags or as their whole answer.
TAGGED, BARE = CallFormat(OPEN, CLOSE, json_calls), CallFormat("", "", json_calls)
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
    """The calls that were read so far; at most one, or any number.

    schemas: of the arguments of the functions that are known, by their names; None: any function is.
    """

    format: CallFormat = BARE
    schemas: Mapping[str, Mapping[str, Any]] | None = None
    many: bool = True
    count: int = 0

    def read(self, text: str) -> list[Called] | None:
        """Return the calls that the text holds, None where it is something else."""
        found = self.format.read(text, self.schemas or {})
        if not found or any(self.schemas is not None and name not in self.schemas for name, _ in found):
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

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
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
class MarkedReader:
    """Words, and calls between marks; white space between words and a call is dropped."""

    calls: Calls
    _held: str = ""
    _space: str = ""
    _inside: bool = False
    _begin: str = field(init=False)
    _end: str = field(init=False)

    def __post_init__(self) -> None:
        self._begin, self._end = self.calls.format.begin, self.calls.format.end

    @property
    def finish(self) -> str:
        return "tool_calls" if self.calls.count else "stop"

    def feed(self, text: str) -> Iterator[Read]:
        self._held += text
        while (place := self._held.find(self._mark)) >= 0:
            before, self._held = self._held[:place], self._held[place + len(self._mark) :]
            if self._inside:
                yield from self._closed(before, self._end)
            else:
                words = before.rstrip()
                self._space = before[len(words) :]
                if words:
                    yield words
            self._inside = not self._inside or not self._end
        if not self._inside:
            yield from self._certain()

    def end(self) -> Iterator[Read]:
        if self._inside:
            yield from self._closed(self._held, "")
        elif self._held.strip() or (self._held and not self.calls.count):
            yield self._held

    @property
    def _mark(self) -> str:
        """Return what is looked for: a begin, or a call's end, which may be where the next one begins."""
        return self._end if self._inside and self._end else self._begin

    def _closed(self, text: str, close: str) -> Iterator[Read]:
        read = self.calls.read(text)
        if read is None:
            yield self._space + self._begin + text + close
        else:
            yield from read

    def _certain(self) -> Iterator[Read]:
        """Yield the words that can no longer begin a mark; white space around calls is held with them."""
        begin = self._begin
        keep = max((n for n in range(1, len(begin)) if self._held.endswith(begin[:n])), default=0)
        words = self._held[: len(self._held) - keep]
        kept = len(words.rstrip())
        if words[:kept]:
            yield words[:kept]
            self._held = self._held[kept:]


def reader_of(calls: Calls) -> Reader:
    """Return what reads the calls of an answer that may have some."""
    return MarkedReader(calls) if calls.format.begin else BareReader(calls)


def new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
