"""From what an engine generated to OpenAI's chat answers: completions and chunks."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from server.answers import proof, token_logprob, usage
from server.engine.protocol import FinishReason, PositionLogprobs, TokenEvent
from server.generation import Events
from server.run import Choice, Run


async def chunked(run: Run, events: Events) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answer's chunks: roles, contents, ends, and the usage if it was asked for."""
    tokens = [0] * len(run.jobs)
    for index in range(len(run.jobs)):
        yield opening(run, index)
    async with aclosing(events):
        async for index, event in events:
            tokens[index] = event.completion_tokens
            if event.text or event.logprobs:
                yield content(run, index, event, sum(tokens))
            if event.finish is not None:
                yield closing(run, index, event, sum(tokens))
    if run.include_usage:
        yield accounting(run, sum(tokens))


def completion(run: Run, choices: Sequence[Choice]) -> dict[str, Any]:
    return {
        "id": run.id,
        "object": "chat.completion",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.fingerprint,
        "choices": [completed(index, choice, run) for index, choice in enumerate(choices)],
        "usage": usage(run, sum(choice.completion_tokens for choice in choices)),
        **proof(run, {index: choice.steered_tokens for index, choice in enumerate(choices)}),
    }


def completed(index: int, choice: Choice, run: Run) -> dict[str, Any]:
    wanted = run.jobs[index].sampling.logprobs is not None
    return {
        "index": index,
        "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
        "logprobs": logprobs(choice.logprobs) if wanted else None,
        "finish_reason": choice.finish,
    }


def chunk(
    run: Run,
    choices: list[dict[str, Any]],
    completion_tokens: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return one chunk; with usage asked for, every chunk carries it, null but in the last."""
    body: dict[str, Any] = {
        "id": run.id,
        "object": "chat.completion.chunk",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.fingerprint,
        "choices": choices,
    }
    if run.include_usage:
        body["usage"] = usage(run, completion_tokens) if run.continuous_usage else None
    if extra:
        body.update(extra)
    return body


def opening(run: Run, index: int) -> dict[str, Any]:
    return chunk(run, [delta(index, {"role": "assistant", "content": "", "refusal": None})])


def content(run: Run, index: int, event: TokenEvent, tokens: int) -> dict[str, Any]:
    told = logprobs(event.logprobs) if event.logprobs else None
    return chunk(run, [delta(index, {"content": event.text}, told)], tokens)


def closing(run: Run, index: int, event: TokenEvent, tokens: int) -> dict[str, Any]:
    return chunk(
        run, [delta(index, {}, None, event.finish)], tokens, proof(run, {index: event.steered_tokens})
    )


def accounting(run: Run, completion_tokens: int) -> dict[str, Any]:
    return chunk(run, [], completion_tokens, {"usage": usage(run, completion_tokens)})


def delta(
    index: int,
    change: dict[str, Any],
    told: dict[str, Any] | None = None,
    finish: FinishReason | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": change, "logprobs": told, "finish_reason": finish}


def logprobs(positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
    told = [
        {**token_logprob(position.chosen), "top_logprobs": [token_logprob(top) for top in position.top]}
        for position in positions
    ]
    return {"content": told, "refusal": None}
