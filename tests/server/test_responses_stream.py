"""Streams of responses: OpenAI's events in OpenAI's order, the whole answer at the end, and failures."""

from typing import Any

import httpx
import pytest

from server.engine.scripted import ScriptedEngine
from tests.server.asking_responses import (
    HELLO,
    LOGPROBS,
    PATH,
    SHAPED,
    WEATHER,
    Start,
    answer,
    checked,
    post,
    refusal,
    streamed,
    text_of,
)
from tests.server.running import error_of, until
from tests.server.test_tools import CALL, says

ENDLESS = {"ignore_eos": True, "max_output_tokens": 4000}


def settled(response: dict[str, Any]) -> dict[str, Any]:
    """Return the response without what is new in each: ids and times."""
    names = {"id", "created_at", "completed_at", "call_id"}
    output = [{key: item[key] for key in item if key not in names} for item in response["output"]]
    return {**{key: response[key] for key in response if key not in names}, "output": output}


PREAMBLE = ["response.created", "response.in_progress"]

MESSAGE = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]

CALLING = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    """Return the events' types, those that follow one another alike told once."""
    kinds = [event["type"] for event in events]
    return [kind for number, kind in enumerate(kinds) if number == 0 or kinds[number - 1] != kind]


def test_events_come_in_openais_order(start: Start) -> None:
    assert kinds_of(streamed(start())) == [*PREAMBLE, *MESSAGE, "response.completed"]
    events = streamed(start(says(f"Look: {CALL}{CALL} So.")), tools=[WEATHER])
    assert kinds_of(events) == [*PREAMBLE, *MESSAGE, *CALLING, *CALLING, *MESSAGE, "response.completed"]
    for event in events[:2]:
        assert (event["response"]["status"], event["response"]["output"]) == ("in_progress", [])
    assert "[DONE]" not in post(start(), stream=True).text


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("hello", {}),
        ("hello", {"steering": "cheerful*0.5"}),
        ("naïve 🤗 日本語", {"include": LOGPROBS, "top_logprobs": 1}),
        ("hello", {"stop": "ll", "include": LOGPROBS}),
        ("hello", {"max_output_tokens": 3}),
        ("", {"include": LOGPROBS}),
        (f"One: {CALL}\n{CALL} and", {"tools": [WEATHER], "include": LOGPROBS}),
        (CALL, {"tools": [WEATHER], "parallel_tool_calls": False}),
        ("words <tool_call>broken", {"tools": [WEATHER], "include": LOGPROBS}),
        ('{"city": "Oslo"}', {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}}),
        (
            '{"city": "Oslo"}',
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "name": "weather"},
                "max_output_tokens": 4,
            },
        ),
        ('{"name": "weather", "arguments": {}}', {"tools": [WEATHER], "tool_choice": "required"}),
        ('{"name": "Ann"}', {"text": SHAPED}),
    ],
)
def test_a_streams_last_response_is_the_whole_one(start: Start, text: str, fields: Any) -> None:
    server = start(says(text))
    events = streamed(server, **fields)
    last = checked(events[-1]["response"])
    assert settled(last) == settled(answer(server, **fields))
    done = {e["output_index"]: e["item"] for e in events if e["type"] == "response.output_item.done"}
    assert [done[index] for index in range(len(done))] == last["output"]
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}
    for index, item in enumerate(last["output"]):
        own = [e for e in events if e.get("item_id") == item["id"]]
        assert {event["output_index"] for event in own} == {index}
        deltas = "".join(event.get("delta", "") for event in own)
        if item["type"] == "function_call":
            assert deltas == item["arguments"]
        else:
            assert deltas == item["content"][0]["text"]
            told = [token for e in own if "delta" in e for token in e["logprobs"]]
            assert told == item["content"][0]["logprobs"]


def test_an_error_in_a_stream_ends_it_as_failed(start: Start) -> None:
    server = start(ScriptedEngine(fail_on="ll"))
    *_, delta, error, failed = streamed(server)
    assert delta["delta"] == "l"
    assert (error["type"], error["code"]) == ("error", "generation_failed")
    assert failed["type"] == "response.failed"
    response = checked(failed["response"])
    assert response["error"] == {"code": "server_error", "message": error["message"]}
    assert (text_of(response), response["output"][0]["status"]) == ("hel", "incomplete")
    assert refusal(server)["code"] == "generation_failed"
    assert server.engine.health().running == 0


def test_a_stream_beyond_its_time_ends_as_failed(start: Start) -> None:
    server = start(ScriptedEngine(delay=0.05), request_timeout=1)
    *_, error, failed = streamed(server, **ENDLESS)
    assert error["code"] == "request_timeout"
    assert failed["response"]["status"] == "failed"
    until(lambda: server.engine.health().running == 0)


def test_a_client_that_leaves_cancels_its_response(start: Start) -> None:
    server = start(ScriptedEngine(delay=0.01))
    body = {**HELLO, **ENDLESS}
    with server.client.stream("POST", PATH, json={**body, "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: response.created"
        assert server.engine.health().running == 1
    until(lambda: server.engine.health().running == 0)
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(PATH, json=body, timeout=0.3)
    until(lambda: len(server.engine.cancelled) == 2)


def test_a_full_engine_and_a_missing_key_are_said_before_a_stream_begins(start: Start) -> None:
    assert refusal(start(ScriptedEngine(capacity=0)), stream=True)["code"] == "engine_overloaded"
    locked = start(api_key=("good",))
    assert refusal(locked)["status"] == 401
    assert error_of(locked.client.get(f"{PATH}/resp_1"))["status"] == 401
