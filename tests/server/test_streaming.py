"""Streams and long answers under trouble: clients that leave, engines that are full, fail or die."""

import json
import socket
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.engine.scripted import ScriptedEngine
from tests.server.running import CHAT, HELLO, Running, error_of, events_of, running, until
from vector_store.memory import MemoryStore

ENDLESS = {**HELLO, "ignore_eos": True, "max_tokens": 4000}


def slow_engine() -> ScriptedEngine:
    return ScriptedEngine(delay=0.01)


@pytest.mark.parametrize("choices", [1, 3])
def test_a_client_that_leaves_a_stream_cancels_its_jobs(start: Any, choices: int) -> None:
    server = start(slow_engine())
    body = {**ENDLESS, "stream": True, "n": choices}
    with server.client.stream("POST", CHAT, json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.engine.health().running == choices
    until(lambda: server.engine.health().running == 0)
    assert len(server.engine.cancelled) == choices


@pytest.mark.parametrize("choices", [1, 3])
def test_a_client_that_leaves_a_whole_answer_cancels_its_jobs(start: Any, choices: int) -> None:
    server = start(slow_engine())
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(CHAT, json={**ENDLESS, "n": choices}, timeout=0.3)
    until(lambda: server.engine.health().running == 0)
    assert len(server.engine.cancelled) == choices


def test_a_client_that_leaves_before_the_first_token_cancels_its_job(start: Any) -> None:
    server = start(ScriptedEngine(delay=60))
    with server.client.stream("POST", CHAT, json={**HELLO, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
    until(lambda: server.engine.health().running == 0)
    assert len(server.engine.cancelled) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_engine_is_a_503_that_says_when_to_come_back(start: Any, stream: bool) -> None:
    server = start(ScriptedEngine(capacity=0))
    response = server.chat(stream=stream)
    error = error_of(response)
    assert (error["status"], error["code"], error["type"]) == (503, "engine_overloaded", "server_error")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_choices_that_do_not_all_fit_leave_none_behind(start: Any, stream: bool) -> None:
    server = start(ScriptedEngine(capacity=2))
    assert server.refusal(n=3, stream=stream)["status"] == 503
    assert server.engine.health().running == 0
    assert server.chat(n=2, stream=stream).status_code == 200


@pytest.mark.parametrize("choices", [1, 2])
def test_an_error_in_a_stream_is_an_event_before_done(start: Any, choices: int) -> None:
    server = start(ScriptedEngine(fail_on="ll"))
    response = server.chat(stream=True, n=choices)
    assert response.status_code == 200
    *chunks, error, done = events_of(response.text)
    assert done == "[DONE]"
    assert json.loads(error)["error"]["code"] == "generation_failed"
    assert json.loads(error)["error"]["type"] == "server_error"
    assert all("error" not in json.loads(chunk) for chunk in chunks)
    assert server.engine.health().running == 0


@pytest.mark.parametrize("choices", [1, 2])
def test_an_error_in_a_whole_answer_is_a_500(start: Any, choices: int) -> None:
    server = start(ScriptedEngine(fail_on="ll"))
    error = server.refusal(n=choices)
    assert (error["status"], error["code"]) == (500, "generation_failed")
    assert server.engine.health().running == 0


def test_an_engine_that_dies_ends_its_streams_with_an_error(start: Any) -> None:
    server = start(slow_engine())
    with server.client.stream("POST", CHAT, json={**ENDLESS, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        server.engine.die("out of memory")
        *_, error, done = [line for line in lines if line]
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    assert server.refusal()["status"] == 503


def test_a_server_that_stops_ends_its_streams_with_an_error(store: MemoryStore) -> None:
    with httpx.Client(timeout=20) as client, ExitStack() as stack:
        server = stack.enter_context(running(store, slow_engine()))
        body = {**ENDLESS, "stream": True}
        with client.stream("POST", f"{server.url}{CHAT}", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            stack.close()
            *_, error, done = [line for line in lines if line]
    assert done == "data: [DONE]"
    assert "engine_unavailable" in error


def broken_script(job: Any) -> str:
    raise ValueError("secret detail")


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_in_the_engine_is_told_without_its_details(start: Any, stream: bool) -> None:
    server = start(ScriptedEngine(broken_script))
    response = server.chat(stream=stream)
    assert "internal_error" in response.text
    assert "secret" not in response.text
    assert response.status_code == (200 if stream else 500)
    assert server.engine.health().running == 0


def test_a_stream_is_sent_while_it_is_made(start: Any) -> None:
    server: Running = start(ScriptedEngine(delay=0.05))
    with server.client.stream("POST", CHAT, json={**HELLO, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        lines = response.iter_lines()
        next(lines)
        assert server.engine.health().running == 1


def test_text_that_is_not_certain_makes_no_event(server: Running) -> None:
    chunks = server.chunks(messages=[{"role": "user", "content": "日"}])
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "日", None]


def test_many_clients_are_served_at_once_and_get_their_own_answers(start: Any) -> None:
    import concurrent.futures

    server: Running = start(ScriptedEngine(delay=0.002))

    def ask(number: int) -> str:
        message = {"role": "user", "content": f"question {number}"}
        return str(server.answer(messages=[message])["choices"][0]["message"]["content"])

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(32))) == [f"question {number}" for number in range(32)]


def test_a_client_of_http_1_0_gets_the_events_whole_and_unchunked(start: Any) -> None:
    server = start(ScriptedEngine())
    body = json.dumps({**HELLO, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    headers, _, events = answer.decode().partition("\r\n\r\n")
    assert "transfer-encoding" not in headers.lower()
    assert f"content-length: {len(events)}" in headers.lower()
    assert events_of(events)[-1] == "[DONE]"
