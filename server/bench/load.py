"""The load: streaming chat requests over HTTP, all at once or a few at a time."""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from server.bench.workload import Prompt

TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: Prompt
    tokens: int
    steering: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """tokens_per_second over the run; first_token: the median request's seconds to its first token."""

    tokens_per_second: float
    first_token: float


async def pace(url: str, asks: Sequence[Ask], concurrent: int) -> Pace:
    """Send every request, `concurrent` of them at a time, and return how fast the answers came."""
    gate = asyncio.Semaphore(concurrent)
    limits = httpx.Limits(max_connections=concurrent)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
        begin = time.perf_counter()
        firsts = await asyncio.gather(*(answer_time(client, ask, gate) for ask in asks))
        seconds = time.perf_counter() - begin
    return Pace(sum(ask.tokens for ask in asks) / seconds, statistics.median(firsts))


async def answer_time(client: httpx.AsyncClient, ask: Ask, gate: asyncio.Semaphore) -> float:
    """Return the seconds to the request's first token; an answer that is not whole is an error."""
    async with gate:
        begin, first, last = time.perf_counter(), 0.0, ""
        async with client.stream("POST", "/v1/chat/completions", json=body(ask)) as response:
            if response.status_code != 200:
                raise RuntimeError((await response.aread()).decode())
            async for line in response.aiter_lines():
                if not first and '"content":' in line and '"content":""' not in line:
                    first = time.perf_counter() - begin
                if line.startswith("data: {"):
                    last = line
    usage = json.loads(last.removeprefix("data: "))["usage"]
    if usage["completion_tokens"] != ask.tokens or usage["prompt_tokens"] != len(ask.prompt.tokens):
        raise RuntimeError(f"asked for {ask.tokens} tokens after {len(ask.prompt.tokens)}, got {usage}")
    return first


def body(ask: Ask) -> dict[str, Any]:
    steering = {} if ask.steering is None else {"steering": ask.steering}
    return {
        "model": "bench",
        "messages": ask.prompt.messages,
        "max_tokens": ask.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **steering,
    }
