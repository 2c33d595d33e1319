"""From what an engine generated to OpenAI's answers: completions, chunks, usage, proof of steering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.engine.protocol import FinishReason, PositionLogprobs, TokenEvent, TokenLogprob
from server.translate import Run
from steering.types import SteeringPlan

LEAST_LOGPROB = -9999.0  # OpenAI's word for "very unlikely"; JSON has no infinity


@dataclass(slots=True)
class Choice:
    """One choice as far as it has come."""

    text: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    completion_tokens: int = 0
    steered_tokens: tuple[int, ...] = ()
    finish: FinishReason | None = None

    def add(self, event: TokenEvent) -> None:
        self.text.append(event.text)
        self.logprobs.extend(event.logprobs)
        self.completion_tokens = event.completion_tokens
        self.steered_tokens = event.steered_tokens
        self.finish = event.finish


def completion(run: Run, choices: Sequence[Choice]) -> dict[str, Any]:
    steered = [sum(tokens) for tokens in zip(*(choice.steered_tokens for choice in choices), strict=True)]
    return {
        "id": run.id,
        "object": "chat.completion",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.fingerprint,
        "choices": [completed(index, choice, run) for index, choice in enumerate(choices)],
        "usage": usage(run, sum(choice.completion_tokens for choice in choices)),
        **proof(run.plan, steered),
    }


def completed(index: int, choice: Choice, run: Run) -> dict[str, Any]:
    wanted = run.jobs[index].sampling.logprobs is not None
    return {
        "index": index,
        "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
        "logprobs": logprobs(choice.logprobs) if wanted else None,
        "finish_reason": choice.finish,
    }


def chunk(run: Run, choices: list[dict[str, Any]], extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
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
        body["usage"] = None
    if extra:
        body.update(extra)
    return body


def opening(run: Run, index: int) -> dict[str, Any]:
    return chunk(run, [delta(index, {"role": "assistant", "content": "", "refusal": None})])


def content(run: Run, index: int, event: TokenEvent) -> dict[str, Any]:
    told = logprobs(event.logprobs) if event.logprobs else None
    return chunk(run, [delta(index, {"content": event.text}, told)])


def closing(run: Run, index: int, event: TokenEvent) -> dict[str, Any]:
    return chunk(run, [delta(index, {}, None, event.finish)], proof(run.plan, event.steered_tokens))


def accounting(run: Run, completion_tokens: int) -> dict[str, Any]:
    return chunk(run, [], {"usage": usage(run, completion_tokens)})


def delta(
    index: int,
    change: dict[str, Any],
    told: dict[str, Any] | None = None,
    finish: FinishReason | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": change, "logprobs": told, "finish_reason": finish}


def usage(run: Run, completion_tokens: int) -> dict[str, int]:
    """Return the counts; a prompt with several choices counts once."""
    return {
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": run.prompt_tokens + completion_tokens,
    }


def proof(plan: SteeringPlan, steered_tokens: Sequence[int]) -> dict[str, Any]:
    """Return the `steering` key that proves a steered answer; nothing for an unsteered one."""
    if not plan.terms:
        return {}
    terms = [
        {
            "profile": term.vectors.name,
            "version": term.vectors.version,
            "digest": term.vectors.digest,
            "strength": term.strength,
            "layers": list(term.layers),
            "positions": term.positions,
            "tokens": term.tokens,
            "steered_tokens": steered,
        }
        for term, steered in zip(plan.terms, steered_tokens, strict=True)
    ]
    return {"steering": terms}


def logprobs(positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
    told = [
        {**token_logprob(position.chosen), "top_logprobs": [token_logprob(top) for top in position.top]}
        for position in positions
    ]
    return {"content": told, "refusal": None}


def token_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": max(token.logprob, LEAST_LOGPROB),
        "bytes": list(token.bytes),
    }
