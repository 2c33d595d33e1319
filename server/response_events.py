"""The output of a response as it comes: token events to items, and to OpenAI's stream events."""

import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from pydantic_core import to_json
from typing_extensions import TypedDict

from server.engine.protocol import PositionLogprobs, TokenEvent
from server.generation import Events
from server.problems import Problem
from server.response_replies import (
    ItemStatus,
    Logprob,
    OutputItem,
    OutputText,
    Response,
    begun,
    ended,
    failed,
    logprobs_of,
    output_text,
)
from server.run import Choice
from server.tool_calls import Called, Read, Reader
from server.translate_response import ResponseRun


class Told(TypedDict):
    sequence_number: int


class ResponseEvent(Told):
    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Response


class ItemEvent(Told):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class Placed(Told):
    item_id: str
    output_index: int


class PartEvent(Placed):
    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int
    part: OutputText


class TextDelta(Placed):
    type: Literal["response.output_text.delta"]
    content_index: int
    delta: str
    logprobs: list[Logprob]


class TextDone(Placed):
    type: Literal["response.output_text.done"]
    content_index: int
    text: str
    logprobs: list[Logprob]


class ArgumentsDelta(Placed):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(Placed):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class ErrorEvent(Told):
    """What cut the response short; `response.failed` follows."""

    type: Literal["error"]
    code: str
    message: str
    param: str | None


StreamEvent = (
    ResponseEvent | ItemEvent | PartEvent | TextDelta | TextDone | ArgumentsDelta | ArgumentsDone | ErrorEvent
)
Body = dict[str, Any]


class Words:
    """A message that is being written."""

    def __init__(self, index: int) -> None:
        self._place = {"item_id": f"msg_{uuid.uuid4().hex}", "output_index": index}
        self._text = ""
        self._logprobs: list[Body] = []

    def opened(self) -> Iterator[Body]:
        item = {**self.item("in_progress"), "content": []}
        yield item_event("response.output_item.added", self._place, item)
        yield self._part_event("response.content_part.added")

    def more(self, text: str, logprobs: list[Body]) -> Body:
        self._text += text
        self._logprobs += logprobs
        told = {"delta": text, "logprobs": logprobs}
        return {"type": "response.output_text.delta", **self._place, "content_index": 0, **told}

    def closed(self, status: ItemStatus) -> Iterator[Body]:
        told = {"text": self._text, "logprobs": self._logprobs}
        yield {"type": "response.output_text.done", **self._place, "content_index": 0, **told}
        yield self._part_event("response.content_part.done")
        yield item_event("response.output_item.done", self._place, self.item(status))

    def item(self, status: ItemStatus) -> Body:
        content = [output_text(self._text, self._logprobs)]
        told = {"status": status, "role": "assistant", "content": content}
        return {"type": "message", "id": self._place["item_id"], **told}

    def _part_event(self, kind: str) -> Body:
        part = output_text(self._text, self._logprobs)
        return {"type": kind, **self._place, "content_index": 0, "part": part}


class Call:
    """A call that is being written."""

    def __init__(self, index: int, called: Called) -> None:
        self._place = {"item_id": f"fc_{uuid.uuid4().hex}", "output_index": index}
        self._called = {"call_id": called.id, "name": called.name}
        self._arguments = ""

    def opened(self) -> Iterator[Body]:
        yield item_event("response.output_item.added", self._place, self.item("in_progress"))

    def more(self, arguments: str) -> Body:
        self._arguments += arguments
        return {"type": "response.function_call_arguments.delta", **self._place, "delta": arguments}

    def closed(self, status: ItemStatus) -> Iterator[Body]:
        told = {"name": self._called["name"], "arguments": self._arguments}
        yield {"type": "response.function_call_arguments.done", **self._place, **told}
        yield item_event("response.output_item.done", self._place, self.item(status))

    def item(self, status: ItemStatus) -> Body:
        told = {"status": status, **self._called, "arguments": self._arguments}
        return {"type": "function_call", "id": self._place["item_id"], **told}


def item_event(kind: str, place: Body, item: Body) -> Body:
    return {"type": kind, "output_index": place["output_index"], "item": item}


class Output:
    """The items of one response as far as they have come; there is always one in the end."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._done: list[Body] = []
        self._open: Words | Call | None = None
        # Those of tokens whose words are still held back; a call's have no place in a response.
        self._held: list[PositionLogprobs] = []

    @property
    def items(self) -> list[Body]:
        return [*self._done, *([self._open.item("incomplete")] if self._open else [])]

    def feed(self, event: TokenEvent) -> Iterator[Body]:
        """Yield what an engine's event changes."""
        self._held += event.logprobs
        for part in self._reader.feed(event.text):
            yield from self._take(part)
        if event.finish is not None:
            for part in self._reader.end():
                yield from self._take(part)
            yield from self._end("completed" if event.finish == "stop" else "incomplete")

    def _take(self, part: Read) -> Iterator[Body]:
        if isinstance(part, str):
            yield from self._say(part)
        elif part.name is None:
            assert isinstance(self._open, Call)
            yield self._open.more(part.arguments)
        else:
            self._held.clear()
            call = Call(len(self.items), part)
            yield from self._opened(call)
            if part.arguments:  # read as a whole
                yield call.more(part.arguments)
                yield from self._closed("completed")

    def _say(self, text: str) -> Iterator[Body]:
        if not isinstance(self._open, Words):
            yield from self._opened(Words(len(self.items)))
        assert isinstance(self._open, Words)
        yield self._open.more(text, self._told())

    def _end(self, status: ItemStatus) -> Iterator[Body]:
        if not self.items:
            yield from self._opened(Words(0))
        if isinstance(self._open, Words) and self._held:
            yield self._open.more("", self._told())
        yield from self._closed(status)

    def _told(self) -> list[Body]:
        held, self._held = self._held, []
        return logprobs_of(held)

    def _opened(self, item: Words | Call) -> Iterator[Body]:
        yield from self._closed("completed")
        self._open = item
        yield from item.opened()

    def _closed(self, status: ItemStatus) -> Iterator[Body]:
        if self._open is not None:
            self._done.append(self._open.item(status))
            yield from self._open.closed(status)
            self._open = None


class Telling:
    """The stream of one response, and its framing: its events have names and numbers, and no `[DONE]`."""

    last = b""

    def __init__(self, run: ResponseRun) -> None:
        self._run = run
        self._output = Output(run.reader())
        self._number = 0

    async def told(self, run: ResponseRun, events: Events) -> AsyncGenerator[Body, None]:
        for kind in ("response.created", "response.in_progress"):
            yield {"type": kind, "response": begun(run)}
        async with aclosing(events):
            async for _, event in events:
                for body in self._output.feed(event):
                    yield body
                if event.finish is not None:
                    yield ending(finished(run, self._output, event))

    def framed(self, body: Body) -> bytes:
        numbered = {**body, "sequence_number": self._number}
        self._number += 1
        return b"event: " + body["type"].encode() + b"\ndata: " + to_json(numbered) + b"\n\n"

    def cut_short(self, problem: Problem) -> bytes:
        error = {"code": problem.code, "message": problem.message, "param": problem.param}
        response = failed(self._run, self._output.items, problem)
        return self.framed({"type": "error", **error}) + self.framed(ending(response))


def ending(response: Body) -> Body:
    return {"type": f"response.{response['status']}", "response": response}


def finished(run: ResponseRun, output: Output, event: TokenEvent) -> Body:
    return ended(run, output.items, event)


def whole(run: ResponseRun, choices: Sequence[Choice]) -> Body:
    """Return the response, told by what tells a stream."""
    (choice,) = choices
    output = Output(run.reader())
    for event in choice.events:
        for _ in output.feed(event):
            pass
    return finished(run, output, choice.events[-1])
