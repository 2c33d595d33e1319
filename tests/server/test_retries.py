"""Answers that say whether to send the request again; OpenAI's client does as they say."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from server.engine.scripted import ScriptedEngine
from server.engine.transformers_engine import TransformersEngine
from server.problems import problem_of
from steering.errors import EngineUnavailable, ProfileCorrupt
from tests.server.running import CHAT, Running, error_of

MESSAGES: Any = [{"role": "user", "content": "hello"}]


@contextmanager
def client_of(server: Running, retries: int) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=retries) as client:
        yield client


def asked(server: Running) -> float:
    """Return how many chat requests the server has answered."""
    name = f'grainserve_requests_total{{route="{CHAT}"'
    lines = server.client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def advice(response: httpx.Response) -> tuple[str | None, str | None]:
    return response.headers.get("retry-after"), response.headers.get("x-should-retry")


@pytest.mark.parametrize("stream", [False, True])
def test_what_time_mends_says_when_to_come_back(start: Any, stream: bool) -> None:
    full, draining = start(ScriptedEngine(capacity=0)), start()
    draining.engine._state = "draining"
    for server in (full, draining):
        response = server.chat(stream=stream)
        assert error_of(response)["status"] == 503
        after, again = advice(response)
        assert again == "true"
        assert 1 <= int(after or 0) <= 60


def test_a_dead_engine_says_not_to_come_back(start: Any) -> None:
    server = start()
    server.engine.die("out of memory")
    response = server.chat()
    assert (response.status_code, *advice(response)) == (503, None, "false")


def test_a_request_that_fails_by_itself_is_not_to_be_sent_again(start: Any) -> None:
    response = start(ScriptedEngine(fail_on="ll")).chat()
    assert (response.status_code, *advice(response)) == (500, None, "false")
    assert problem_of(ProfileCorrupt("broken")).headers == {"x-should-retry": "false"}


@pytest.mark.parametrize("fields", [{}, {"temperature": 9}, {"model": "gpt-4"}])
def test_other_answers_leave_it_to_the_client(server: Running, fields: Any) -> None:
    assert advice(server.chat(**fields)) == (None, None)


def test_openais_client_comes_back_after_the_time_that_it_is_told(start: Any) -> None:
    engine = ScriptedEngine(capacity=0)
    server = start(engine)
    with client_of(server, 2) as client:
        begin = time.monotonic()
        timer = threading.Timer(0.5, setattr, (engine, "capacity", 1))
        timer.start()
        answer = client.chat.completions.create(model="scripted", messages=MESSAGES)
        timer.join()
    assert answer.choices[0].message.content == "hello"
    assert 0.9 < time.monotonic() - begin < 4
    assert asked(server) == 2


@pytest.mark.parametrize("trouble", ["dead", "failing"])
def test_openais_client_does_not_come_back_when_told_so(start: Any, trouble: str) -> None:
    server = start(ScriptedEngine(fail_on="ll"))
    if trouble == "dead":
        server.engine.die("out of memory")
    with client_of(server, 5) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="scripted", messages=MESSAGES)
    assert asked(server) == 1


def test_a_real_engine_that_is_dead_says_so_too() -> None:
    engine = TransformersEngine.__new__(TransformersEngine)
    for state, after in (("starting", 2), ("draining", 2), ("dead", None)):
        engine._state, engine._reason = state, None  # type: ignore[assignment]
        with pytest.raises(EngineUnavailable) as refused:
            engine._refuse_excess()
        assert refused.value.retry_after == after
