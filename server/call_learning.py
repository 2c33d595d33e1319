"""How a model writes calls, learned from its chat template: what that makes of calls that we know.

A format is taken only if it reads back what the template wrote, of one call and of two.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from server.call_formats import (
    DECODER,
    Call,
    CallFormat,
    MarkedCalls,
    NamedCalls,
    json_calls,
    python_calls,
)
from server.tool_calls import Called, Calls, reader_of
from steering.picturing import FAILURES

# A conversation -> its text; raises one of REFUSALS where the template refuses it.
Render = Callable[[Sequence[Mapping[str, Any]]], str]
REFUSALS = (TemplateError, *FAILURES)
NAME, FIRST, SECOND, TEXT, NUMBER = "grain_probe", "grain_first", "grain_second", "grain text", 4711
ARGUMENTS = {FIRST: TEXT, SECOND: NUMBER}
SCHEMA = {
    "type": "object",
    "properties": {FIRST: {"type": "string"}, SECOND: {"type": "integer"}},
    "required": [FIRST, SECOND],
}
PROBE = {
    "type": "function",
    "function": {"name": NAME, "description": "Probes.", "parameters": SCHEMA},
}
ASKED, ANSWERED = "Question?", "Answer."
MARK = r"<[^<>\s][^<>]*>|\[[A-Z_]+\]"


@dataclass(frozen=True, slots=True)
class Learned:
    """A format, the texts of calls that it was learned from, and whether the template takes JSON text."""

    format: CallFormat
    texts: tuple[str, ...]
    from_text: bool


def learned(render: Render) -> Learned | None:
    """Return how the template writes calls, None where that is none of the formats that are read here."""
    return learned_from(render, ARGUMENTS) or learned_from(render, json.dumps(ARGUMENTS))


def learned_from(render: Render, arguments: Any) -> Learned | None:
    once = written(render, arguments, 1)
    if once is None or NAME not in once:
        return None
    twice = written(render, arguments, 2)  # some templates refuse more than one call
    texts = (once,) if twice is None else (once, twice)
    for candidate in candidates(once):
        if all(reads_back(candidate, text, count) for count, text in enumerate(texts, 1)):
            return Learned(candidate, texts, isinstance(arguments, str))
    return None


def written(render: Render, arguments: Any, count: int) -> str | None:
    """Return the text of so many calls, without what stands around every answer."""
    asked = {"role": "user", "content": ASKED}
    calls = [
        {"id": f"grain000{number}", "type": "function", "function": {"name": NAME, "arguments": arguments}}
        for number in range(count)
    ]
    try:
        words = after_question(render([asked, {"role": "assistant", "content": ANSWERED}]))
        called = after_question(render([asked, {"role": "assistant", "content": "", "tool_calls": calls}]))
    except REFUSALS:
        return None
    called = called[alike(words, called) :]
    return called[: len(called) - alike(words[::-1], called[::-1])].strip()


def alike(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def after_question(text: str) -> str:
    return text.rpartition(ASKED)[2]


def reads_back(candidate: CallFormat, text: str, count: int) -> bool:
    if candidate.end:  # marks behind it are the template's, not the call's
        text = text[: text.rfind(candidate.end) + len(candidate.end)]
    reader = reader_of(Calls(candidate, {NAME: SCHEMA}))
    read = [*reader.feed(text), *reader.end()]
    calls = [(each.name, json.loads(each.arguments)) for each in read if isinstance(each, Called)]
    return len(read) == count and calls == [(NAME, ARGUMENTS)] * count


def candidates(text: str) -> Iterator[CallFormat]:
    """Yield the formats that may have made the text of one call."""
    yield from as_json(text)
    yield from as_python(text)
    before, _, after = text.partition(NAME)
    begin = re.match(MARK, before)
    if begin is None:
        return
    prefix, mark = before[begin.end() :], begin[0]
    for inside, end in endings(after):
        for parse in (named(prefix, inside), marked(prefix, inside)):
            if parse is not None:
                yield CallFormat(mark, end, parse)


def endings(after: str) -> Iterator[tuple[str, str]]:
    """Yield what may follow a name within a call, and the mark that ends it: the last one, an earlier, none.

    Behind it there are only marks.
    """
    for mark in reversed(list(re.finditer(MARK, after))):
        if re.sub(MARK, "", after[mark.end() :]).strip():
            break
        yield after[: mark.start()], mark[0]
    yield after, ""


def as_json(text: str) -> Iterator[CallFormat]:
    for opening in re.finditer(r"[\[{]", text[: text.index(NAME)]):
        try:
            _, end = DECODER.raw_decode(text, opening.start())
        except ValueError:
            continue
        yield around(text, opening.start(), end, json_calls)


def as_python(text: str) -> Iterator[CallFormat]:
    begin, end = text.find(f"[{NAME}("), text.rfind(")]") + 2
    if begin >= 0 and end > begin:
        yield around(text, begin, end, python_calls)


def around(text: str, begin: int, end: int, parse: Callable[..., list[Call]]) -> CallFormat:
    before, after = text[:begin].strip(), text[end:].strip()
    return CallFormat(before, after if before else "", parse)


def named(prefix: str, after: str) -> NamedCalls | None:
    """Return what reads a call whose arguments are JSON, or like it; after: what follows the name."""
    place = after.find("{")
    if place < 0:
        return None
    quote = quote_of(after)
    try:
        end = DECODER.raw_decode(after, place)[1] if not quote else after.rindex("}") + 1
    except ValueError:
        return None
    return NamedCalls(prefix, after[:place], after[end:], quote)


def quote_of(after: str) -> str:
    """Return the mark that stands on both sides of a string, and not of a number, where there is one."""
    before_text, _, rest = after.partition(FIRST)[2].partition(TEXT)
    before_number = rest.partition(SECOND)[2].partition(str(NUMBER))[0]
    quote = before_text.removeprefix(before_number)
    return quote if quote != before_text and quote != '"' and rest.startswith(quote) else ""


def marked(prefix: str, after: str) -> MarkedCalls | None:
    """Return what reads a call whose arguments stand between marks; after: what follows the name."""
    pieces = []
    for known in (FIRST, TEXT, SECOND, str(NUMBER)):
        piece, found, after = after.partition(known)
        if not found:
            return None
        pieces.append(piece)
    opening, between, middle, _ = pieces
    closing = re.match(rf"\s*(?:{MARK})", middle)
    if closing is None:
        return None
    close, key = closing[0], middle[closing.end() :].strip()
    header, footer = opening.strip().removesuffix(key), after.removeprefix(close)
    return MarkedCalls(prefix, header, key, between, close, footer)
