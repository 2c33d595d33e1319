"""Ask a server of everything at once for a long time, and compare every greedy answer with its reference.

Run: python examples/soak.py --minutes 30 --concurrency 20

Starts `grainserve serve` on the embedded model, asks each kind of request alone for its reference, then all
kinds at once in random order: whole and streamed, steered and not, sweeps, JSON, tools, completions, clients
that leave, and mistakes. Ends with the numbers: wrong answers, failures, memory after a warm-up and at the
end.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress

WARM_UP = 0.2  # of the whole time, before memory counts
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
QUESTIONS = ("How was your day?", "Name three birds.", "What is 17 plus 25?", "Tell me about the sea. " * 20)
STEERINGS: tuple[Any, ...] = (
    None,
    "cheerful",
    "poetic*0.7",
    [{"profile": "cheerful", "strength": 0.5}, {"profile": "formal", "strength": 0.5}],
    {"profile": "vivid", "positions": "generated"},
)
SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "score": {"type": "integer", "maximum": 9, "minimum": 0},
    },
    "required": ["mood", "score"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "rate", "parameters": SCHEMA}}
MISTAKES: tuple[dict[str, Any], ...] = (
    {"steering": "cheerfull"},
    {"steering": {"profile": "cheerful", "strength": 99}},
    {"temperature": 3},
    {"messages": []},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
)


@dataclass
class Tally:
    """What came of the requests so far."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """One kind of request whose answer is the same every time."""

    path: str
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return self.path + json.dumps(self.body, sort_keys=True)


def kinds() -> list[Asked]:
    chats: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": question}], "steering": steering}
        for question in QUESTIONS
        for steering in STEERINGS
    ]
    shaped: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": "How was the film?"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "film", "schema": SCHEMA}},
        },
        {"messages": [{"role": "user", "content": "Rate it."}], "tools": [TOOL], "tool_choice": "required"},
        {
            "messages": [{"role": "user", "content": "How are you?"}],
            "steering": {"profile": "cheerful", "strength": [0, 0.5, 1]},
        },
    ]
    plain = [{"prompt": "Once upon a time", "steering": steering} for steering in STEERINGS]
    return [
        *(Asked(CHAT, {**body, "temperature": 0, "max_tokens": 32}) for body in [*chats, *shaped]),
        *(Asked(COMPLETIONS, {**body, "temperature": 0, "max_tokens": 24}) for body in plain),
    ]


def said(answer: dict[str, Any]) -> Any:
    """Return what must be the same every time: texts, calls without their ids, the proof's counts."""
    texts = [
        choice.get("text") or choice["message"].get("content") or called(choice["message"])
        for choice in answer["choices"]
    ]
    return texts, [term["steered_tokens"] for term in answer.get("steering", [])], answer["usage"]


def called(message: dict[str, Any]) -> list[Any]:
    return [call["function"] for call in message.get("tool_calls", [])]


class Soak:
    """Asks for everything at random until the time is over."""

    def __init__(self, client: httpx.AsyncClient, model: str, seed: int) -> None:
        self._client = client
        self._model = model
        self._random = random.Random(seed)
        self._kinds = kinds()
        self._references: dict[str, Any] = {}
        self.tally = Tally()

    async def learn(self, step: Callable[[], None]) -> None:
        for kind in self._kinds:
            answer = await self._post(kind.path, kind.body)
            answer.raise_for_status()
            self._references[kind.key] = said(answer.json())
            step()

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            act = self._random.choices([self.whole, self.streamed, self.leave, self.mistake], [6, 3, 2, 1])[0]
            try:
                await act()
            except httpx.HTTPError as error:
                self.tally.failed.append(f"{act.__name__}: {type(error).__name__} {error}")
            self.tally.done[act.__name__] += 1

    async def whole(self) -> None:
        kind = self._random.choice(self._kinds)
        answer = await self._post(kind.path, kind.body)
        if answer.status_code != 200:
            self.tally.failed.append(f"{answer.status_code} {answer.text[:200]}")
        elif said(answer.json()) != self._references[kind.key]:
            self.tally.wrong.append(kind.key)

    async def streamed(self) -> None:
        single = [each for each in self._kinds if len(self._references[each.key][0]) == 1]
        kind = self._random.choice([each for each in single if "tools" not in each.body])
        text = "".join([piece async for piece in self._pieces(kind)])
        if text != self._references[kind.key][0][0]:
            self.tally.wrong.append(f"streamed {kind.key}")

    async def leave(self) -> None:
        kind = self._random.choice(self._kinds)
        pieces = self._pieces(Asked(kind.path, {**kind.body, "max_tokens": 400}))
        for _ in range(self._random.randrange(6)):
            await anext(pieces, None)
        await pieces.aclose()

    async def mistake(self) -> None:
        messages = [{"role": "user", "content": "?"}]
        answer = await self._post(CHAT, {"messages": messages, **self._random.choice(MISTAKES)})
        if not 400 <= answer.status_code < 500:
            self.tally.wrong.append(f"a mistake was answered with {answer.status_code}")

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self._client.post(path, json={"model": self._model, **body})

    async def _pieces(self, kind: Asked) -> Any:
        body = {"model": self._model, **kind.body, "stream": True}
        async with self._client.stream("POST", kind.path, json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    yield choice.get("text") or choice.get("delta", {}).get("content") or ""


@asynccontextmanager
async def server(asked: argparse.Namespace) -> AsyncIterator[tuple[psutil.Process, str]]:
    """Start the server in a process of its own; it ends with the block."""
    command = [sys.executable, "-m", "server", "serve", "--port", str(asked.port), "--log-level", "error"]
    cache = ["--cache-dir", str(asked.cache_dir)] if asked.cache_dir else []
    process = subprocess.Popen([*command, *cache])  # noqa: ASYNC220 (nothing else runs yet)
    url = f"http://127.0.0.1:{asked.port}"
    try:
        async with httpx.AsyncClient(base_url=url) as client:
            for _ in range(600):
                await asyncio.sleep(0.5)
                try:
                    if (await client.get("/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise SystemExit("the server did not start") from None
        yield psutil.Process(process.pid), url
    finally:
        process.terminate()
        process.wait(60)


async def abandon(client: httpx.AsyncClient, model: str, count: int, words: int) -> float:
    """Send many long requests and leave each after half a second; return how long a new one then takes."""
    message = {"role": "user", "content": "sea " * words}

    async def one(number: int) -> None:
        body = {"model": model, "messages": [message, {"role": "user", "content": str(number)}]}
        try:
            await client.post(CHAT, json=body, timeout=0.5)
        except httpx.TimeoutException:
            return

    await asyncio.gather(*(one(number) for number in range(count)))
    began = time.perf_counter()
    hello = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    (await client.post(CHAT, json=hello, timeout=60)).raise_for_status()
    return time.perf_counter() - began


async def measure(asked: argparse.Namespace) -> int:
    console = Console()
    async with server(asked) as (process, url), client_of(url) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        soak = Soak(client, model, asked.seed)
        with Progress(console=console) as progress:
            learning = progress.add_task("references", total=len(kinds()))
            await soak.learn(lambda: progress.advance(learning))
            seconds = asked.minutes * 60
            began = time.monotonic()
            runners = [asyncio.create_task(soak.run(began + seconds)) for _ in range(asked.concurrency)]
            running = progress.add_task("all at once", total=seconds)
            warm = 0.0
            while not all(runner.done() for runner in runners):
                await asyncio.sleep(1.0)
                passed = time.monotonic() - began
                progress.update(running, completed=min(passed, seconds))
                if not warm and passed > WARM_UP * seconds:
                    warm = process.memory_info().rss
            await asyncio.gather(*runners)
        grown = (process.memory_info().rss - warm) / 2**20
        tally = soak.tally
        console.print(f"requests: {dict(tally.done)}")
        console.print(f"wrong answers: {len(tally.wrong)}; failures: {len(tally.failed)}")
        for line in [*tally.wrong, *tally.failed][:10]:
            console.print(line, markup=False)
        console.print(f"memory: {warm / 2**20:.0f} MB after the warm-up, {grown:+.0f} MB at the end")
        took = await abandon(client, model, asked.abandoned, asked.words)
        console.print(
            f"{asked.abandoned} abandoned requests of {asked.words} words: a new one took {took:.1f} s"
        )
        await asyncio.sleep(5)
        health = (await client.get("/health")).json()
        console.print(f"left behind: {health['running']} running, {health['waiting']} waiting")
        return int(bool(tally.wrong or tally.failed))


def client_of(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=600, limits=limits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--abandoned", type=int, default=200)
    parser.add_argument("--words", type=int, default=5000, help="of an abandoned request")
    parser.add_argument("--port", type=int, default=8290)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", type=Path)
    raise SystemExit(asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
