"""Connections whose clients send too much, too slowly, or nothing at all."""

import json
import socket
import time
from typing import Any

import pytest

from server import connections
from server.engine.scripted import ScriptedEngine
from tests.server.running import CHAT, HELLO, Running, error_of, until
from tests.server.test_deadlines import opened


def answer_on(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Return the status, headers and body of the answer that ends a connection."""
    raw = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = raw.decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), json.loads(body)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)


def test_many_headers_and_long_ones_are_taken_up_to_a_limit(server: Running) -> None:
    few = {f"x-{number}": "y" for number in range(100)}
    assert server.client.get("/v1/models", headers=few).status_code == 200
    assert server.client.get("/v1/models", headers={"x-long": "y" * 60_000}).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/models", {f"x-{number}": "y" for number in range(200)}),
        ("/v1/models", {"x-long": "y" * 70_000}),
        ("/v1/models", {f"x-{number}": "y" * 10_000 for number in range(10)}),
        (f"/v1/models?{'y' * 60_000}", {"x-long": "y" * 10_000}),
    ],
)
def test_headers_beyond_the_limit_are_refused(server: Running, path: str, headers: dict[str, str]) -> None:
    response = server.client.get(path, headers=headers)
    error = error_of(response)
    assert (error["status"], error["code"]) == (431, "headers_too_large")
    assert "128 of them" in error["message"]
    assert response.headers["x-request-id"]
    assert server.client.get("/v1/models").status_code == 200


def test_a_header_without_end_is_cut_off(server: Running) -> None:
    with opened(server) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: h\r\nx-endless: ")
        assert bytes_until_closed(connection, b"y" * 10_000) < 20_000_000


def bytes_until_closed(connection: socket.socket, piece: bytes) -> int:
    sent = 0
    try:
        while sent < 50_000_000:
            sent += connection.send(piece)
    except OSError:
        pass
    return sent


def test_headers_behind_a_body_are_limited_too(server: Running) -> None:
    with opened(server) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"2\r\n{}\r\n0\r\n")
        assert bytes_until_closed(connection, b"x-more: y\r\n" * 100) < 20_000_000


@pytest.mark.parametrize("sent", [b"NONSENSE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00"])
def test_what_is_not_http_is_told_so_in_openais_shape(server: Running, sent: bytes) -> None:
    with opened(server) as connection:
        connection.sendall(sent)
        status, headers, body = answer_on(connection)
    assert (status, body["error"]["code"]) == (400, "invalid_http")
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert headers["x-request-id"]
    assert headers["connection"] == "close"


@pytest.mark.parametrize("body", [b"zz\r\n{}\r\n", b"2\r\n{}\r\n-1\r\n", b"2\r\n{}XX0\r\n\r\n"])
def test_a_body_in_broken_chunks_is_told_so(server: Running, body: bytes) -> None:
    with opened(server) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        time.sleep(0.1)
        connection.sendall(body)
        status, _, answer = answer_on(connection)
    assert (status, answer["error"]["code"]) == (400, "invalid_http")
    assert server.client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HTTP/1.1\r\nHost: h\r\n"])
@pytest.mark.parametrize("trickles", [False, True])
def test_a_connection_that_asks_nothing_is_closed(
    start: Any, hurried: None, sent: bytes, trickles: bool
) -> None:
    server = start()
    with opened(server) as connection:
        connection.sendall(sent)
        assert seconds_until_closed(connection, b"x-a: b\r\n" if trickles and sent else b"") < 3


def seconds_until_closed(connection: socket.socket, trickle: bytes = b"") -> float:
    begin = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - begin < 10:
        try:
            connection.sendall(trickle)
            if not connection.recv(65536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - begin


def test_an_idle_connection_is_kept_and_then_closed(start: Any) -> None:
    server = start(idle_timeout=1)
    with opened(server) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.5)
        assert seconds_until_closed(connection) < 3


def test_a_body_that_goes_on_after_its_answer_does_not_hold_the_connection(start: Any, hurried: None) -> None:
    server = start(api_key=("key",), idle_timeout=1)
    with opened(server) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        assert seconds_until_closed(connection, b" ") < 4


def test_a_long_answer_outlives_the_time_for_a_head(start: Any, hurried: None) -> None:
    server = start(ScriptedEngine(delay=0.3))
    assert server.chunks()
    assert server.answer()["choices"][0]["message"]["content"] == "hello"


def test_a_client_that_takes_nothing_of_its_stream_is_cut_off(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.3)
    server = start(ScriptedEngine(lambda _: "x" * 4000))
    body = json.dumps({**HELLO, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}).encode()
    with opened(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: len(server.engine.jobs) == 8)
        until(lambda: server.app.state.service.intake.under_way == 0)
    assert server.answer()["choices"]


def in_chunks(trailer: bytes) -> bytes:
    body = json.dumps(HELLO).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    return (
        head.encode()
        + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + f"{len(body):x}\r\n".encode()
        + body
        + b"\r\n0\r\n"
        + trailer
        + b"\r\n"
    )


@pytest.mark.parametrize("pause", [0.0, 0.1])
@pytest.mark.parametrize(
    ("trailer", "status"),
    [
        (b"X-Steering-Profile: cheerful\r\n", 400),
        (b"Authorization: Bearer key\r\n", 400),
        (b"Content-Type: text/plain\r\n", 200),
    ],
)
def test_headers_behind_a_body_say_nothing_however_they_arrive(
    server: Running, trailer: bytes, status: int, pause: float
) -> None:
    sent = in_chunks(trailer)
    cut = len(sent) - len(trailer) - 2 if pause else len(sent)
    with opened(server) as connection:
        connection.sendall(sent[:cut])
        time.sleep(pause)
        connection.sendall(sent[cut:])
        answered, _, body = answer_on(connection)
    assert answered == status
    if status == 400:
        assert "before it" in body["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\n{}",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"Content-Length: -1\r\n\r\n{}",
    ],
)
def test_a_body_that_cannot_be_measured_is_told_so(server: Running, headers: bytes) -> None:
    with opened(server) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: h\r\n".encode() + headers)
        status, _, body = answer_on(connection)
    assert (status, body["error"]["code"]) == (400, "invalid_http")


@pytest.mark.parametrize("length", [b"", b"Content-Length: 2\r\n"])
def test_what_follows_a_shorter_body_does_not_take_its_answer(server: Running, length: bytes) -> None:
    with opened(server) as connection:
        sent = f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n".encode()
        connection.sendall(sent + length + b"\r\n{}trailing garbage that is no request\r\n\r\n")
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    assert raw.startswith(b"HTTP/1.1 400")


BROKEN = [
    (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "not valid HTTP"),
    (b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Steering-Profile: cheerful\r\n\r\n", "before it"),
]


@pytest.mark.parametrize(("broken", "said"), BROKEN)
def test_a_broken_request_behind_others_waits_for_their_answers(start: Any, broken: bytes, said: str) -> None:
    server = start(ScriptedEngine(delay=0.05))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n".encode()
    body = json.dumps(HELLO).encode()
    whole = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with opened(server) as connection:
        connection.sendall(whole + whole + head + broken)
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    first, second, last = raw.decode().split("HTTP/1.1 ")[1:]
    assert first.startswith("200")
    assert second.startswith("200")
    assert last.startswith("400")
    assert said in last


def test_a_broken_body_that_was_answered_is_not_answered_again(server: Running) -> None:
    with opened(server) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        connection.sendall(b"zz\r\n")
        assert connection.recv(65536) == b""


@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_a_body_that_asks_for_another_protocol_is_told_so(server: Running, pause: float) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    body = json.dumps(HELLO).encode()
    with opened(server) as connection:
        connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode())
        time.sleep(pause)
        connection.sendall(body)
        status, _, told = answer_on(connection)
    assert (status, told["error"]["code"]) == (400, "invalid_http")
    assert "without 'Upgrade'" in told["error"]["message"]
