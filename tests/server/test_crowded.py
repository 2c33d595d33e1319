"""Bodies that are small to send and slow to read are refused before they are read."""

import json
import time
from typing import Any

import httpx
import pytest

from server.nesting import MOST_CONTAINERS, crowded
from tests.server.running import CHAT, HELLO, Running, error_of

USER = {"role": "user", "content": "x"}


def called(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "c", "content": "ok"}
    return [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, result]


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"a":' + "[" * 100_000,
        '{"a":' * 60 + "1" + "}" * 60,
        '{"a":[' + "[]," * 100_000 + "1]}",
    ],
    ids=["deep", "open", "beyond 48 levels", "crowded"],
)
def test_arguments_of_calls_are_bounded_on_every_route(server: Running, arguments: str) -> None:
    messages = called(arguments)
    items = [
        {"role": "user", "content": "x"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments},
        {"type": "function_call_output", "call_id": "c", "output": "ok"},
    ]
    for path, body in (
        (CHAT, {**HELLO, "messages": messages}),
        ("/tokenize", {"messages": messages}),
        ("/v1/responses", {"model": "scripted", "input": items}),
    ):
        error = error_of(server.client.post(path, json=body))
        assert error["status"] == 400, path
        assert "at most 48 levels" in error["message"]
        assert "arguments" in error["param"]


def test_arguments_within_the_bound_are_taken(server: Running) -> None:
    assert server.answer(messages=called('{"a":' * 40 + "1" + "}" * 40))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {**HELLO, "response_format": {"schema": {"enum": [[]] * 300_000}}}),
        ("/v1/completions", {"model": "scripted", "prompt": [[1]] * 300_000}),
        ("/v1/responses", {"model": "scripted", "input": [{"annotations": [{}] * 300_000}]}),
    ],
)
def test_a_crowded_body_is_refused_at_once(server: Running, path: str, body: dict[str, Any]) -> None:
    written = json.dumps(body)
    began = time.monotonic()
    error = error_of(server.client.post(path, content=written, headers={"content-type": "application/json"}))
    assert error["status"] == 400
    assert str(MOST_CONTAINERS) in error["message"]
    assert time.monotonic() - began < 2


def test_brackets_in_text_count_for_nothing() -> None:
    assert crowded(b'{"a": [' + b"[]," * 100_001 + b"[]]}")
    assert not crowded(json.dumps({"a": '[{"\\' * 200_000}).encode())


def test_what_is_only_counted_is_bounded_too(server: Running) -> None:
    def refusal(**body: Any) -> dict[str, Any]:
        response: httpx.Response = server.client.post("/tokenize", json=body)
        return error_of(response)

    assert refusal(prompt=" " * 1_000_001)["param"] == "prompt"
    assert refusal(messages=[USER] * 2049)["param"] == "messages"


def test_layers_of_any_length_are_not_repeated(server: Running) -> None:
    error = error_of(
        server.client.post(
            CHAT,
            content=json.dumps(HELLO)[:-1]
            + ', "steering": {"profile": "x", "layers": ['
            + "9" * 4000
            + "]}}",
            headers={"content-type": "application/json"},
        )
    )
    assert error["status"] == 400
    assert len(error["message"]) < 400
