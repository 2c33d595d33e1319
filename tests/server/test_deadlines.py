"""Requests and bodies that take too long, and streams that say nothing for a while."""

import json
import socket
import time
from typing import Any

import httpx
import openai
import pytest

from server.engine.scripted import ScriptedEngine
from tests.server.running import CHAT, HELLO, Running, error_of, until
from tests.server.test_retries import advice

ENDLESS = {**HELLO, "ignore_eos": True, "max_tokens": 4000}


def said(response: httpx.Response) -> list[str]:
    return [line for line in response.text.split("\n\n") if line]


@pytest.mark.parametrize("delay", [0.05, 60])
@pytest.mark.parametrize("choices", [1, 2])
def test_a_whole_answer_that_takes_too_long_is_a_504_and_is_cancelled(
    start: Any, delay: float, choices: int
) -> None:
    server = start(ScriptedEngine(delay=delay), request_timeout=0.4)
    begin = time.monotonic()
    response = server.client.post(CHAT, json={**ENDLESS, "n": choices})
    assert 0.3 < time.monotonic() - begin < 5
    error = error_of(response)
    assert (error["status"], error["type"], error["code"]) == (504, "server_error", "request_timeout")
    assert "0.4 s" in error["message"]
    assert advice(response) == (None, "false")
    until(lambda: server.engine.health().running == 0)
    assert len(server.engine.cancelled) == choices


@pytest.mark.parametrize("delay", [0.05, 60])
@pytest.mark.parametrize("choices", [1, 2])
def test_a_stream_that_takes_too_long_ends_with_an_error_and_done(
    start: Any, delay: float, choices: int
) -> None:
    server = start(ScriptedEngine(delay=delay), request_timeout=0.4)
    response = server.client.post(CHAT, json={**ENDLESS, "stream": True, "n": choices})
    assert response.status_code == 200
    *_, error, done = said(response)
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert done == "data: [DONE]"
    until(lambda: server.engine.health().running == 0)
    assert len(server.engine.cancelled) == choices


def test_openais_client_hears_of_a_stream_that_took_too_long(start: Any) -> None:
    server = start(ScriptedEngine(delay=0.05), request_timeout=0.4)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        stream = client.chat.completions.create(
            model="scripted",
            messages=ENDLESS["messages"],
            stream=True,
            max_tokens=4000,  # type: ignore[call-overload]
            extra_body={"ignore_eos": True},
        )
        with pytest.raises(openai.APIError) as late:
            list(stream)
    assert late.value.code == "request_timeout"


def test_a_request_in_time_is_not_cut_off(start: Any) -> None:
    server = start(ScriptedEngine(delay=0.02), request_timeout=5)
    assert server.answer()["choices"][0]["message"]["content"] == "hello"
    assert server.chunks()


def test_a_client_that_does_not_read_its_stream_is_cut_off(start: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("server.deadlines.LAST_WORDS", 0.2)
    server = start(ScriptedEngine(lambda _: "x" * 4000), request_timeout=0.5)
    body = json.dumps({**HELLO, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}).encode()
    with opened(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(head(len(body)) + body)
        until(lambda: server.engine.health().running == 8)
        until(lambda: server.engine.health().running == 0)
        until(lambda: server.app.state.service.intake.under_way == 0)


def opened(server: Running) -> socket.socket:
    address = server.client.base_url
    return socket.create_connection((address.host, address.port), timeout=10)


def head(length: int) -> bytes:
    lines = [
        f"POST {CHAT} HTTP/1.1",
        "Host: h",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_body_that_trickles_in_is_cut_off(start: Any) -> None:
    server = start(body_timeout=0.5)
    with opened(server) as connection:
        connection.sendall(head(10_000))
        begin = time.monotonic()
        connection.settimeout(0.05)
        answer = b""
        while not answer:
            connection.sendall(b" ")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                assert time.monotonic() - begin < 5
        connection.settimeout(5)
        while piece := connection.recv(65536):
            answer += piece
    told, _, body = answer.partition(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in told.lower()
    assert json.loads(body)["error"]["code"] == "request_body_timeout"
    assert "0.5 s" in json.loads(body)["error"]["message"]


def test_an_answer_may_take_longer_than_a_body(start: Any) -> None:
    server = start(ScriptedEngine(delay=0.1), body_timeout=0.2)
    assert server.answer()["choices"][0]["message"]["content"] == "hello"
    assert server.chunks()


def test_a_silent_stream_says_that_it_is_alive(start: Any) -> None:
    server = start(ScriptedEngine(delay=0.35), sse_keep_alive=0.1)
    begin, *events, done = said(server.chat(stream=True, max_tokens=2))
    assert begin.startswith("data: ")
    assert done == "data: [DONE]"
    assert events.count(": keep-alive") >= 4
    assert [event for event in events if not event.startswith(("data: {", ": keep-alive"))] == []


@pytest.mark.parametrize(("delay", "pause"), [(0.02, 0.3), (0.2, 0)])
def test_a_stream_that_speaks_or_is_told_not_to_sends_no_comments(
    start: Any, delay: float, pause: float
) -> None:
    server = start(ScriptedEngine(delay=delay), sse_keep_alive=pause)
    assert ": keep-alive" not in said(server.chat(stream=True))


def test_openais_client_skips_the_comments(start: Any) -> None:
    server = start(ScriptedEngine(delay=0.15), sse_keep_alive=0.05)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        messages: Any = HELLO["messages"]
        stream = client.chat.completions.create(model="scripted", messages=messages, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "hello"
