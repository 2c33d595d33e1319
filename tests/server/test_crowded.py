"""Bodies that are small to send and slow to read are refused before they are read."""

import gc
import json
import time
from typing import Any

import httpx
import pytest

from server.engine.scripted import ScriptedEngine
from server.nesting import MOST_CONTAINERS, crowded
from tests.server.running import CHAT, HELLO, Running, error_of

USER = {"role": "user", "content": "x"}


def called(*arguments: str) -> list[dict[str, Any]]:
    calls = [
        {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": each}}
        for number, each in enumerate(arguments)
    ]
    results = [
        {"role": "tool", "tool_call_id": f"c{number}", "content": "ok"} for number in range(len(arguments))
    ]
    return [USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (['{"a":' * 5000 + "1" + "}" * 5000], "48 levels"),
        (['{"a":' + "[" * 99_000], "48 levels"),
        (['{"a":' * 60 + "1" + "}" * 60], "48 levels"),
        (['{"a":[' + "[]," * 100_000 + "1]}"], "100000 arrays"),
        (['{"a":[' + "[]," * 40_000 + "1]}"] * 3, "100000 arrays"),
    ],
    ids=["deep", "open", "beyond 48 levels", "crowded", "crowded together"],
)
def test_arguments_of_calls_are_bounded_on_every_route(
    server: Running, arguments: list[str], said: str
) -> None:
    messages = called(*arguments)
    items = [
        {"role": "user", "content": "x"},
        *(
            {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": each}
            for number, each in enumerate(arguments)
        ),
        *(
            {"type": "function_call_output", "call_id": f"c{number}", "output": "ok"}
            for number in range(len(arguments))
        ),
    ]
    for path, body in (
        (CHAT, {**HELLO, "messages": messages}),
        ("/tokenize", {"messages": messages}),
        ("/v1/responses", {"model": "scripted", "input": items}),
    ):
        error = error_of(server.client.post(path, json=body))
        assert error["status"] == 400, path
        assert said in error["message"]
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


@pytest.mark.parametrize(
    "rest",
    [b'"' + b'\\"' * 2_000_000, b'"' * 4_000_000, b'"' + b"a" * 4_000_000, b'"\\' * 1_500_000],
    ids=range(4),
)
def test_a_string_without_end_is_looked_through_once(rest: bytes) -> None:
    began = time.monotonic()
    assert crowded(b"[" * 200_000 + rest)
    assert time.monotonic() - began < 5


def test_what_is_only_counted_is_bounded_too(server: Running) -> None:
    def refusal(**body: Any) -> dict[str, Any]:
        response: httpx.Response = server.client.post("/tokenize", json=body)
        return error_of(response)

    assert refusal(prompt=" " * 1_000_001)["param"] == "prompt"
    assert refusal(messages=[USER] * 2049)["param"] == "messages"
    assert refusal(messages=[{**USER, "content": "a" * 1_000_000}])["code"] == "context_length_exceeded"


def test_tools_and_calls_count_for_what_cannot_fit(server: Running) -> None:
    long = "[" + "1," * 300_000 + "1]"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": json.loads(long)}}}
    for fields in ({"tools": [tool]}, {"messages": called(f'{{"a": {long}}}')}):
        error = server.refusal(**fields)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert "characters" in error["message"]


def test_a_conversation_beyond_the_context_is_counted_all_the_same(start: Any) -> None:
    server = start(ScriptedEngine(context_length=20))
    counted = server.client.post("/tokenize", json={"messages": [{**USER, "content": "a" * 1000}]}).json()
    assert counted["count"] > 1000


def test_what_came_with_an_answers_words_is_bounded(server: Running) -> None:
    part = {"type": "output_text", "text": "x", "annotations": [], "logprobs": [1] * 100_001}
    body = {"model": "scripted", "input": [{"role": "assistant", "content": [part]}]}
    error = error_of(server.client.post("/v1/responses", json=body))
    assert (error["status"], error["param"]) == (400, "input[0].content[0].logprobs")


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


def test_collections_do_not_walk_what_is_loaded(start: Any) -> None:
    start()
    assert gc.get_freeze_count() > 10_000
