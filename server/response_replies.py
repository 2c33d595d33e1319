"""A response as it goes out: OpenAI's object, and what of the request it repeats."""

import time
from collections.abc import Sequence
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.answers import SteeredTerm, proof, token_logprob
from server.engine.protocol import PositionLogprobs, TokenEvent
from server.problems import Problem
from server.translate_response import ResponseRun

Status = Literal["in_progress", "completed", "incomplete", "failed"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class TokenLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class OutputText(TypedDict):
    """logprobs: empty where they were not asked for."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Logprob]


class OutputMessage(TypedDict):
    type: Literal["message"]
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class FunctionCall(TypedDict):
    type: Literal["function_call"]
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | FunctionCall


class InputTokens(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokens(TypedDict):
    reasoning_tokens: int


class Usage(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class Failure(TypedDict):
    code: Literal["server_error"]
    message: str


class Incomplete(TypedDict):
    reason: Literal["max_output_tokens"]


class Response(TypedDict):
    """A response. Nothing is stored; usage and steering come with its end."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    error: Failure | None
    incomplete_details: Incomplete | None
    model: str
    output: list[OutputItem]
    usage: Usage | None
    steering: NotRequired[list[SteeredTerm]]

    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: dict[str, None]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, str]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None


def begun(run: ResponseRun) -> dict[str, Any]:
    return response(run, "in_progress", [])


def ended(
    run: ResponseRun,
    output: list[dict[str, Any]],
    last: TokenEvent,
) -> dict[str, Any]:
    """Return the response of an answer that came to its end, or to the most tokens that it may have."""
    whole = last.finish == "stop"
    return {
        **response(run, "completed" if whole else "incomplete", output),
        "completed_at": int(time.time()) if whole else None,
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
        "usage": usage(run, last.completion_tokens, last.cached_tokens),
        **proof(run, {0: last.steered_tokens}),
    }


def failed(run: ResponseRun, output: list[dict[str, Any]], problem: Problem) -> dict[str, Any]:
    """Return the response of an answer that was cut short; OpenAI's codes know no better one."""
    error = {"code": "server_error", "message": problem.message}
    return {**response(run, "failed", output), "error": error}


def response(run: ResponseRun, status: Status, output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": run.id,
        "object": "response",
        "created_at": run.created,
        "completed_at": None,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": run.model,
        "output": output,
        "usage": None,
        **repeated(run),
    }


def repeated(run: ResponseRun) -> dict[str, Any]:
    """Return what a response says of its request, what was not said as it is by default."""
    asked = run.asked
    sampling = run.jobs[0].sampling
    shape = asked.text.format if asked.text else None
    choice = asked.tool_choice or "auto"
    return {
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {
            "format": shape.model_dump(by_alias=True, exclude_unset=True) if shape else {"type": "text"}
        },
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in asked.tools or ()],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "truncation": "disabled",
        "user": asked.user,
    }


def usage(run: ResponseRun, tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": run.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": run.prompt_tokens + tokens,
    }


def output_text(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def logprobs_of(positions: Sequence[PositionLogprobs]) -> list[dict[str, Any]]:
    return [
        {**token_logprob(position.chosen), "top_logprobs": [token_logprob(top) for top in position.top]}
        for position in positions
    ]
