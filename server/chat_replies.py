"""From what an engine generated to OpenAI's chat answers: completions and chunks."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from server.answers import proof, token_logprob, usage
from server.engine.protocol import FinishReason, PositionLogprobs, TokenEvent
from server.generation import Events
from server.run import Choice, Run
from server.tool_calls import Called, Read, Reader


async def chunked(run: Run, events: Events) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answer's chunks: roles, contents and calls, ends, and the usage if it was asked for."""
    tokens, cached = [0] * len(run.jobs), 0
    readers = [run.reader() for _ in run.jobs]
    for index in range(len(run.jobs)):
        yield opening(run, index)
    async with aclosing(events):
        async for index, event in events:
            tokens[index] = event.completion_tokens
            cached = cached if index else event.cached_tokens
            reader = readers[index]
            read = [*reader.feed(event.text), *(reader.end() if event.finish else ())]
            for change in changes(read, event):
                yield content(run, index, change, sum(tokens))
            if event.finish is not None:
                yield closing(run, index, event, finish_of(event.finish, reader), sum(tokens))
    if run.include_usage:
        yield accounting(run, sum(tokens), cached)


def completion(run: Run, choices: Sequence[Choice]) -> dict[str, Any]:
    return {
        "id": run.id,
        "object": "chat.completion",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.fingerprint,
        "choices": [completed(index, choice, run) for index, choice in enumerate(choices)],
        "usage": usage(run, sum(choice.completion_tokens for choice in choices), choices[0].cached_tokens),
        **proof(run, {index: choice.steered_tokens for index, choice in enumerate(choices)}),
    }


def completed(index: int, choice: Choice, run: Run) -> dict[str, Any]:
    wanted = run.jobs[index].sampling.logprobs is not None
    reader = run.reader()
    read = [*reader.feed("".join(choice.text)), *reader.end()]
    return {
        "index": index,
        "message": message(read),
        "logprobs": logprobs(choice.logprobs) if wanted else None,
        "finish_reason": finish_of(choice.finish, reader),
    }


def message(read: Sequence[Read]) -> dict[str, Any]:
    """Return the assistant's message; one that only calls tools has no content."""
    words = "".join(part for part in read if isinstance(part, str))
    calls: dict[int, dict[str, Any]] = {}
    for part in read:
        if isinstance(part, Called):
            if part.name is not None:
                calls[part.index] = call(part)
            else:
                calls[part.index]["function"]["arguments"] += part.arguments
    told = {"role": "assistant", "content": words if words or not calls else None, "refusal": None}
    return {**told, "tool_calls": list(calls.values())} if calls else told


def call(called: Called) -> dict[str, Any]:
    return {
        "id": called.id,
        "type": "function",
        "function": {"name": called.name, "arguments": called.arguments},
    }


def finish_of(finish: FinishReason | None, reader: Reader) -> str | None:
    return reader.finish if finish == "stop" else finish


Change = tuple[dict[str, Any], Sequence[PositionLogprobs]]


def changes(read: Sequence[Read], event: TokenEvent) -> Iterator[Change]:
    """Yield the deltas of what was read; the first one carries the log-probabilities of the event."""
    told = [part_delta(part) for part in read]
    if event.logprobs and not told:
        told = [{"content": ""}]
    for number, each in enumerate(told):
        yield each, () if number else event.logprobs


def part_delta(part: Read) -> dict[str, Any]:
    if isinstance(part, str):
        return {"content": part}
    if part.name is None:
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]}
    return {"tool_calls": [{"index": part.index, **call(part)}]}


def chunk(
    run: Run,
    choices: list[dict[str, Any]],
    completion_tokens: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return one chunk; with usage asked for, every chunk carries it, null where the last tells it."""
    body: dict[str, Any] = {
        "id": run.id,
        "object": "chat.completion.chunk",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.fingerprint,
        "choices": choices,
    }
    if run.include_usage or run.continuous_usage:
        body["usage"] = usage(run, completion_tokens) if run.continuous_usage else None
    if extra:
        body.update(extra)
    return body


def opening(run: Run, index: int) -> dict[str, Any]:
    return chunk(run, [delta(index, {"role": "assistant", "content": "", "refusal": None})])


def content(run: Run, index: int, change: Change, tokens: int) -> dict[str, Any]:
    words, positions = change
    return chunk(run, [delta(index, words, logprobs(positions) if positions else None)], tokens)


def closing(run: Run, index: int, event: TokenEvent, finish: str | None, tokens: int) -> dict[str, Any]:
    return chunk(run, [delta(index, {}, None, finish)], tokens, proof(run, {index: event.steered_tokens}))


def accounting(run: Run, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return chunk(run, [], completion_tokens, {"usage": usage(run, completion_tokens, cached_tokens)})


def delta(
    index: int,
    change: dict[str, Any],
    told: dict[str, Any] | None = None,
    finish: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": change, "logprobs": told, "finish_reason": finish}


def logprobs(positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
    told = [
        {**token_logprob(position.chosen), "top_logprobs": [token_logprob(top) for top in position.top]}
        for position in positions
    ]
    return {"content": told, "refusal": None}
