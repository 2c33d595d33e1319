"""A server that is told to stop: what runs ends, what is new is sent elsewhere, then the process is gone."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.config import Settings
from server.engine.scripted import ScriptedEngine
from server.serving import LAST_SECONDS
from tests.server.running import CHAT, HELLO, Running, error_of, events_of, until

ROOT = Path(__file__).parents[2]
ANSWER = "an answer of so many letters"
STREAM = {**HELLO, "messages": [{"role": "user", "content": ANSWER}], "stream": True}


@contextmanager
def process(delay: float, grace: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server on the scripted engine; yield its process and address."""
    command = [sys.executable, "-m", "tests.server.scripted_process", str(delay), str(grace)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as running:
        try:
            assert running.stdout is not None
            printed = "".join(running.stdout.readline() for _ in range(5))
            found = re.search(r"http://[\d.:]+", printed)
            assert found is not None, printed
            yield running, found[0]
        finally:
            running.kill()


def read_stream(client: httpx.Client, begun: threading.Barrier) -> tuple[str, float]:
    """Return all that a stream says, and when it ended."""
    with client.stream("POST", CHAT, json=STREAM) as response:
        lines = response.iter_lines()
        said = next(lines)
        begun.wait(20)
        said = "\n".join([said, *lines]) + "\n"
    return said, time.monotonic()


def content_of(stream: str) -> str:
    *chunks, done = events_of(stream)
    assert done == "[DONE]"
    deltas = (json.loads(chunk)["choices"][0]["delta"] for chunk in chunks)
    return "".join(delta.get("content") or "" for delta in deltas)


def refused(response: httpx.Response) -> None:
    assert error_of(response)["code"] == "engine_unavailable"
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["x-should-retry"] == "true"
    assert response.headers["connection"] == "close"
    assert response.headers["x-request-id"]


def test_ten_streams_end_well_while_new_requests_are_refused() -> None:
    with process(delay=0.1, grace=30) as (server, url), httpx.Client(base_url=url, timeout=20) as client:
        begun = threading.Barrier(11)
        client.get("/v1/models")  # a connection that stays open
        with ThreadPoolExecutor(10) as pool:
            streams = [pool.submit(read_stream, client, begun) for _ in range(10)]
            begun.wait(20)
            server.send_signal(signal.SIGTERM)
            until(lambda: client.get("/ready").status_code == 503, 1)
            assert client.get("/health").status_code == 200
            assert client.get("/health").json()["status"] == "draining"
            refused(client.post(CHAT, json=HELLO))
            refused(httpx.post(f"{url}{CHAT}", json=STREAM))
            refused(httpx.get(f"{url}/v1/models"))
            assert not any(stream.done() for stream in streams)
            ended = [stream.result() for stream in streams]
        assert [content_of(said) for said, _ in ended] == [ANSWER] * 10
        output, errors = server.communicate(timeout=10)
        gone = time.monotonic() - max(when for _, when in ended)
        assert server.returncode == 0
        assert "waiting up to 30 s for 10 requests" in errors
        assert "Traceback" not in output + errors
        assert gone < 10
        print(f"gone {gone:.2f} s after the last stream")


def test_when_the_grace_is_over_each_stream_ends_with_an_error() -> None:
    endless = {**STREAM, "ignore_eos": True, "max_tokens": 4000}
    with process(delay=0.05, grace=0.5) as (server, url), httpx.Client(base_url=url, timeout=20) as client:
        with client.stream("POST", CHAT, json=endless) as response:
            lines = response.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            *_, error, done = [line for line in lines if line]
        assert (json.loads(error.removeprefix("data: "))["error"]["code"], done) == (
            "engine_unavailable",
            "data: [DONE]",
        )
        assert server.wait(LAST_SECONDS) == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_is_gone_at_once(end: signal.Signals) -> None:
    with process(delay=0, grace=30) as (server, url), httpx.Client(base_url=url) as client:
        assert client.post(CHAT, json=HELLO).status_code == 200  # and its connection stays open
        begin = time.monotonic()
        server.send_signal(end)
        assert server.wait(10) == 0
        assert time.monotonic() - begin < 5


def test_a_second_signal_does_not_wait() -> None:
    with (
        process(delay=60, grace=60) as (server, url),
        httpx.Client(base_url=url, timeout=20) as client,
        client.stream("POST", CHAT, json=STREAM) as response,
    ):
        next(response.iter_raw())
        server.send_signal(signal.SIGTERM)
        until(lambda: client.get("/ready").status_code == 503)
        server.send_signal(signal.SIGTERM)
        assert server.wait(5) == 128 + signal.SIGTERM


def test_an_answer_that_ends_while_the_server_drains_closes_its_connection(start: Any) -> None:
    server: Running = start(ScriptedEngine(delay=0.1))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.chat)
        until(lambda: server.engine.health().running == 1)
        server.app.state.service.intake.closed = True
        assert answer.result().status_code == 200
    assert answer.result().headers["connection"] == "close"


def test_the_container_waits_longer_than_the_server_does() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for service in compose["services"].values():
        assert int(service["stop_grace_period"].removesuffix("s")) >= Settings().grace + LAST_SECONDS + 5
