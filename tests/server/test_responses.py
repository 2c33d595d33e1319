"""Responses: OpenAI's object and events, input of every kind, what is refused, and the same as chat does."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from server.engine.scripted import ScriptedEngine
from server.response_events import StreamEvent
from server.response_replies import Response
from steering.picturing import pictured_of
from tests.server.profiles import small_store
from tests.server.running import Running, error_of, running, until
from tests.server.test_images import as_bytes, noise, url_of
from tests.server.test_operations import references
from tests.server.test_tools import CALL, prompt_text, says
from tests.tiny_vlms import load_tiny_vlm

Start = Callable[..., Running]

PATH = "/v1/responses"
HELLO = {"model": "scripted", "input": "hello"}
LOGPROBS = ["message.output_text.logprobs"]
ANSWER, EVENT = TypeAdapter(Response), TypeAdapter(StreamEvent)
OPENAI_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ENDLESS = {"ignore_eos": True, "max_output_tokens": 4000}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "description": "The weather of a city.", "parameters": CITY}
CLOCK = {"type": "function", "name": "clock", "parameters": None}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
SHAPED = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
CALLED = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
USER = {"role": "user", "content": "Weather?"}


def post(server: Running, headers: Any = None, **fields: Any) -> httpx.Response:
    return server.client.post(PATH, json={**HELLO, **fields}, headers=headers)


def checked(response: dict[str, Any]) -> dict[str, Any]:
    """Return the response, which is as /openapi.json and OpenAI's own types have it."""
    text = json.dumps(response)
    ANSWER.validate_json(text, strict=True)
    OpenAIResponse.model_validate_json(text, strict=True)
    return response


def answer(server: Running, headers: Any = None, **fields: Any) -> dict[str, Any]:
    response = post(server, headers, **fields)
    assert response.status_code == 200, response.text
    return checked(response.json())


def framed_events(text: str) -> list[dict[str, Any]]:
    """Return a stream's events, each of which OpenAI's types know; they are named and numbered."""
    assert text.endswith("\n\n")
    told = []
    for number, event in enumerate(text.removesuffix("\n\n").split("\n\n")):
        name, data = event.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        assert body["sequence_number"] == number
        EVENT.validate_json(json.dumps(body), strict=True)
        OPENAI_EVENT.validate_json(json.dumps(body), strict=True)
        told.append(body)
    return told


def streamed(server: Running, **fields: Any) -> list[dict[str, Any]]:
    response = post(server, stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return framed_events(response.text)


def refusal(server: Running, headers: Any = None, **fields: Any) -> dict[str, Any]:
    response = post(server, headers, **fields)
    assert response.status_code >= 400, response.text
    return error_of(response)


def text_of(response: dict[str, Any]) -> str:
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


def settled(response: dict[str, Any]) -> dict[str, Any]:
    """Return the response without what is new in each: ids and times."""
    names = {"id", "created_at", "completed_at", "call_id"}
    output = [{key: item[key] for key in item if key not in names} for item in response["output"]]
    return {**{key: response[key] for key in response if key not in names}, "output": output}


def test_a_response_has_openais_shape(server: Running) -> None:
    response = answer(server)
    assert response.pop("id").startswith("resp_")
    assert response["created_at"] <= response.pop("completed_at") <= response.pop("created_at") + 60
    [item] = response.pop("output")
    assert item.pop("id").startswith("msg_")
    part = {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}
    assert item == {"type": "message", "status": "completed", "role": "assistant", "content": [part]}
    assert response == {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "scripted",
        "usage": {
            "input_tokens": 24,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 30,
        },
        "background": False,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }


def test_a_response_repeats_what_was_asked(start: Start) -> None:
    asked = {
        "instructions": "Be kind.",
        "max_output_tokens": 50,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "temperature": 0.5,
        "tool_choice": {"type": "function", "name": "weather"},
        "tools": [{**WEATHER, "strict": True}],
        "top_p": 0.25,
        "truncation": "disabled",
        "user": "u",
    }
    response = answer(start(says("{}")), **asked)
    assert {name: response[name] for name in asked} == asked
    assert answer(start(says("{}")), text=SHAPED)["text"]["format"]["schema"] == PERSON


def test_nothing_is_stored_whatever_was_asked(server: Running) -> None:
    for store in (None, False, True):
        assert answer(server, store=store)["store"] is False


def test_an_answer_without_words_is_a_message_without_words(start: Start) -> None:
    [item] = answer(start(says("")))["output"]
    assert item["content"][0]["text"] == ""
    kinds = [event["type"] for event in streamed(start(says("")))]
    assert "response.output_text.delta" not in kinds
    assert "response.output_text.done" in kinds


def test_the_most_tokens_leave_a_response_incomplete(server: Running) -> None:
    response = answer(server, max_output_tokens=2)
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert response["completed_at"] is None
    assert response["output"][0]["status"] == "incomplete"
    assert (text_of(response), response["usage"]["output_tokens"]) == ("he", 2)
    assert streamed(server, max_output_tokens=2)[-1]["type"] == "response.incomplete"


def test_log_probabilities_stand_beside_the_text(server: Running) -> None:
    response = answer(server, include=LOGPROBS, top_logprobs=2, max_output_tokens=2)
    first, _ = response["output"][0]["content"][0]["logprobs"]
    assert [rival["token"] for rival in first.pop("top_logprobs")] == ["h", "i"]
    assert first == {"token": "h", "logprob": -0.5, "bytes": [104]}
    assert response["top_logprobs"] == 2
    told = answer(server, include=LOGPROBS, max_output_tokens=1)["output"][0]["content"][0]["logprobs"]
    assert [token["top_logprobs"] for token in told] == [[]]
    assert refusal(server, top_logprobs=2)["param"] == "top_logprobs"


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


def test_a_call_is_an_item_of_its_own(start: Start) -> None:
    words, call = answer(start(says(f"Let me look.\n{CALL}")), tools=[WEATHER, CLOCK])["output"]
    assert words["content"][0]["text"] == "Let me look."
    assert call.pop("id").startswith("fc_")
    assert call.pop("call_id").startswith("call_")
    assert call == {
        "type": "function_call",
        "status": "completed",
        "name": "weather",
        "arguments": '{"city": "Oslo"}',
    }


def test_a_call_that_is_cut_off_is_incomplete(start: Start) -> None:
    chosen = {"type": "function", "name": "weather"}
    server = start(says('{"city": "Oslo"}'))
    response = answer(server, tools=[WEATHER], tool_choice=chosen, max_output_tokens=5)
    [call] = response["output"]
    assert (response["status"], call["status"], call["arguments"]) == ("incomplete", "incomplete", '{"cit')
    assert json.loads(server.engine.jobs[-1].sampling.grammar.schema) == CITY


def test_tools_and_choices_are_chats(start: Start) -> None:
    running = start(says("fine"))
    flat = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "parallel_tool_calls": False}
    answer(running, **flat)
    nested = [
        {"type": "function", "function": {k: v for k, v in t.items() if k != "type"}} for t in flat["tools"]
    ]
    running.answer(**{**flat, "tools": nested})
    mine, chats = running.engine.jobs[-2:]
    assert mine.prompt == chats.prompt
    assert mine.sampling.grammar is chats.sampling.grammar
    answer(running, tools=[WEATHER], tool_choice="none")
    assert "weather" not in prompt_text(running.engine.jobs[-1])


def test_a_format_keeps_the_answer_to_its_shape(start: Start) -> None:
    running = start(says('{"name": "Ann"}'))
    assert json.loads(text_of(answer(running, text=SHAPED))) == {"name": "Ann"}
    assert json.loads(running.engine.jobs[-1].sampling.grammar.schema) == PERSON
    answer(running, text={"format": {"type": "json_object"}})
    assert json.loads(running.engine.jobs[-1].sampling.grammar.schema) == {"type": "object"}
    for text in (None, {}, {"format": {"type": "text"}}, {"format": None, "verbosity": None}):
        answer(running, text=text)
        assert running.engine.jobs[-1].sampling.grammar is None


SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": -1,
    "frequency_penalty": 2,
    "logit_bias": {"5": -100},
    "seed": -3,
    "stop": ["a", "b"],
    "stop_token_ids": [7],
    "ignore_eos": True,
}


def test_every_sampling_option_reaches_the_engine_as_chats(server: Running) -> None:
    answer(server, **SAMPLING, max_output_tokens=7, include=LOGPROBS, top_logprobs=3)
    server.answer(**SAMPLING, max_tokens=7, logprobs=True, top_logprobs=3)
    mine, chats = server.engine.jobs[-2:]
    assert (mine.sampling, mine.prompt) == (chats.sampling, chats.prompt)


INPUTS: list[tuple[Any, list[dict[str, Any]]]] = [
    ("hello", [{"role": "user", "content": "hello"}]),
    ([{"role": "user", "content": "a"}], [{"role": "user", "content": "a"}]),
    (
        [
            {"type": "message", "role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
            },
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "c", "annotations": [{"x": 1}]}],
            },
            {"role": "user", "content": ""},
        ],
        [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": ""},
        ],
    ),
    (
        [USER, CALLED, {**CALLED, "call_id": "c2", "name": "clock"}, RESULT],
        [
            USER,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": n, "arguments": '{"city": "Oslo"}'}}
                    for n in ("weather", "clock")
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
    ),
    (
        [
            {"role": "assistant", "content": "Let me"},
            CALLED,
            {"role": "assistant", "content": " look."},
            {**RESULT, "output": [{"type": "input_text", "text": "rain"}]},
        ],
        [
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
    ),
]


@pytest.mark.parametrize(("items", "messages"), INPUTS)
def test_input_becomes_the_prompt_that_chat_makes(server: Running, items: Any, messages: Any) -> None:
    answer(server, input=items)
    server.answer(messages=messages)
    mine, chats = server.engine.jobs[-2:]
    assert prompt_text(mine) == prompt_text(chats)


def test_instructions_are_a_system_message_before_the_input(server: Running) -> None:
    answer(server, instructions="Be brief.")
    server.answer(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}])
    assert server.engine.jobs[-1].prompt == server.engine.jobs[-2].prompt


def test_an_answer_can_be_sent_back_as_it_came(start: Start) -> None:
    server = start(says(f"Look: {CALL} there."))
    output = answer(server, input=[USER], tools=[WEATHER], include=LOGPROBS, top_logprobs=1)["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "message"]
    result = {**RESULT, "call_id": output[1]["call_id"]}
    answer(server, input=[USER, *output, result], tools=[WEATHER])
    told = prompt_text(server.engine.jobs[-1])
    message = server.answer(messages=[USER], tools=[nested(WEATHER)])["choices"][0]["message"]
    chat = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}
    server.answer(messages=[USER, message, chat], tools=[nested(WEATHER)])
    assert told == prompt_text(server.engine.jobs[-1])


def nested(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {key: tool[key] for key in tool if key != "type"}}


def test_steering_is_said_as_in_chat_and_proven(server: Running) -> None:
    for fields, headers in (
        ({"steering": {"profile": "cheerful", "strength": 0.5}}, None),
        ({"steering": [{"profile": "cheerful", "strength": 0.5}]}, None),
        ({"steering": "cheerful*0.5"}, None),
        ({"model": "scripted:cheerful*0.5"}, None),
        ({}, {"X-Steering-Profile": "cheerful", "X-Steering-Strength": "0.5"}),
    ):
        response = answer(server, headers, **fields)
        assert text_of(response) == "cheerful*0.5: hello"
        assert response["steering"] == server.answer(steering="cheerful*0.5")["steering"]
    assert "steering" not in answer(server)
    assert streamed(server, steering="cheerful*0.5")[-1]["response"]["steering"] == response["steering"]


def test_steering_pauses_in_answers_of_a_given_shape(start: Start) -> None:
    [term] = answer(start(says("{}")), text=SHAPED, steering="cheerful")["steering"]
    assert term["positions"] == "prompt"


def test_a_response_is_one_answer_so_strengths_are_no_list(server: Running) -> None:
    for steering, param in (
        ({"profile": "cheerful", "strength": [0, 1]}, "steering.strength"),
        ({"profile": "cheerful", "strength": [1]}, "steering.strength"),
        ([{"profile": "concise"}, {"profile": "cheerful", "strength": [0, 1]}], "steering[1].strength"),
    ):
        error = refusal(server, steering=steering)
        assert (error["status"], error["code"], error["param"]) == (400, "invalid_steering", param)
        assert "one answer" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "pmpt_1"}},
        {"background": True},
    ],
)
def test_what_needs_state_is_refused_and_says_what_to_do(server: Running, fields: Any) -> None:
    [param] = fields
    error = refusal(server, **fields)
    assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", param)
    assert "this server keeps no state" in error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/resp_1"),
        ("GET", "/resp_1?stream=true"),
        ("DELETE", "/resp_1"),
        ("POST", "/resp_1/cancel"),
        ("GET", "/resp_1/input_items"),
    ],
)
def test_no_response_is_found_again(server: Running, method: str, path: str) -> None:
    error = error_of(server.client.request(method, PATH + path))
    assert (error["status"], error["code"], error["param"]) == (404, "response_not_found", "response_id")
    assert "keeps no state" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": {"effort": "high"}},
        {"text": {"verbosity": "low"}},
        {"truncation": "auto"},
        {"max_tool_calls": 3},
        {"moderation": {"model": "m"}},
        {"context_management": [{"type": "compaction"}]},
        {"prompt_cache_retention": "24h"},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"messages": [USER]},
        {"max_tokens": 3},
        {"max_completion_tokens": 3},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"n": 2},
    ],
)
def test_what_openai_does_and_this_server_does_not_is_said(server: Running, fields: Any) -> None:
    error = refusal(server, **fields)
    assert (error["status"], error["code"]) == (400, "unsupported_parameter")
    assert error["param"].split(".")[0] in fields


def test_what_asks_for_nothing_is_accepted(server: Running) -> None:
    answer(
        server,
        reasoning={"effort": None, "summary": None},
        background=False,
        truncation="disabled",
        service_tier="auto",
        stream_options=None,
        include=["reasoning.encrypted_content"],
        context_management=[],
        tools=[],
        tool_choice="none",
        stream=False,
        n=None,
    )
    bare = server.engine.jobs[-1].sampling
    names = {*openais_fields(), *SAMPLING} - {"model", "input"}
    answer(server, **dict.fromkeys(names))
    assert server.engine.jobs[-1].sampling == bare


def openais_fields() -> set[str]:
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    return {*ResponseCreateParamsBase.__annotations__, "stream"}


PARTS = "input[0].content"
TEXT_PART = {"type": "input_text", "text": "x"}
NOTHING = {"input": []}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": {"role": "user", "content": "x"}}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [USER] * 2048}, "input"),
        ({"input": [{"role": "user"}]}, PARTS),
        ({"input": [{"role": "user", "content": None}]}, PARTS),
        ({"input": [{"role": "user", "content": []}]}, PARTS),
        ({"input": [{"role": "user", "content": ["x"]}]}, f"{PARTS}[0]"),
        (
            {"input": [{"role": "user", "content": [TEXT_PART, {"type": "input_text", "text": 1}]}]},
            f"{PARTS}[1].text",
        ),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, f"{PARTS}[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, f"{PARTS}[0]"),
        ({"input": [{"role": "user", "content": [{"type": "refusal"}]}]}, f"{PARTS}[0]"),
        ({"input": [{"role": "user", "content": [{"type": 3, "text": "x"}]}]}, f"{PARTS}[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, f"{PARTS}[0].image_url"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": {"url": "x"}}]}]},
            f"{PARTS}[0].image_url",
        ),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "x", "file_id": "f"}]}
                ]
            },
            f"{PARTS}[0].file_id",
        ),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input[0]"),
        ({"input": [USER, {"type": "computer_call"}]}, "input[1]"),
        ({"input": [{"type": ["message"], "role": "user", "content": "x"}]}, "input[0].type"),
        ({"input": [{**CALLED, "call_id": ""}]}, "input[0].call_id"),
        ({"input": [{**CALLED, "name": "a b"}]}, "input[0].name"),
        ({"input": [{**CALLED, "arguments": {}}]}, "input[0].arguments"),
        ({"input": [USER, CALLED, {**CALLED, "arguments": "[1"}]}, "input[2].arguments"),
        ({"input": [{**RESULT, "output": 3}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"instructions": ["x"]}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"max_output_tokens": 2.5}, "max_output_tokens"),
        ({"top_logprobs": 21, "include": LOGPROBS}, "top_logprobs"),
        ({"include": ["everything"]}, "include[0]"),
        ({"include": "message.output_text.logprobs"}, "include"),
        ({"text": "json"}, "text"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"text": {"format": {**SHAPED["format"], "schema": {"type": "x"}}}}, "text.format.schema"),
        ({"text": SHAPED, "tools": [WEATHER]}, "text.format"),
        ({"text": SHAPED, "ignore_eos": True}, "ignore_eos"),
        ({"tools": [nested(WEATHER)]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [{**WEATHER, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [CLOCK] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"temperature": 3}, "temperature"),
        ({"stop": [""]}, "stop[0]"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"steering": {"profile": "cheerfull"}}, "steering.profile"),
        ({"steering": {"profile": "cheerful", "tokens": "image"}}, "steering.tokens"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"safety_identifier": "x" * 65}, "safety_identifier"),
        ({"stream_options": {}}, "stream_options"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    ],
)
def test_what_is_wrong_is_named_in_the_requests_own_terms(server: Running, fields: Any, param: str) -> None:
    error = refusal(server, **fields)
    assert (error["param"], error["type"]) == (param, "invalid_request_error"), error
    assert error["status"] == (404 if error["code"] == "profile_not_found" else 400)
    assert "messages" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "hint"),
    [
        ({"temprature": 1}, "temprature", "temperature"),
        ({"instruction": "x"}, "instruction", "instructions"),
        ({"input": [{**USER, "statis": "completed"}]}, "input[0].statis", "status"),
        ({"input": [{**CALLED, "call_idd": "c"}]}, "input[0].call_idd", "call_id"),
        ({"input": [{"role": "user", "content": [{**TEXT_PART, "txt": "x"}]}]}, f"{PARTS}[0].txt", "text"),
        ({"text": {"formt": {"type": "text"}}}, "text.formt", "format"),
        ({"text": {"format": {**SHAPED["format"], "stric": True}}}, "text.format.stric", "strict"),
        ({"tools": [{**WEATHER, "paramters": {}}]}, "tools[0].paramters", "parameters"),
        ({"steering": {"profile": "cheerful", "strenght": 1}}, "steering.strenght", "strength"),
    ],
)
def test_an_unknown_field_is_refused_and_the_nearest_is_named(
    server: Running, fields: Any, param: str, hint: str
) -> None:
    error = refusal(server, **fields)
    assert (error["status"], error["param"]) == (400, param)
    assert f"did you mean '{hint}'?" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"model": "scripted", "input": ' + b'[{"content": ' * 50_000,
        b'{"model": "scripted", "input": "\xff"}',
        b'{"model": "scripted", "input": "a", "input": "b"}',
        b'{"model": "scripted", "input": [{"role": "user", "role": "user", "content": "b"}]}',
        b'{"model": "scripted", "input": "a", "temperature": NaN}',
        b'{"input": "a"}',
    ],
)
def test_bodies_that_are_none_are_refused(server: Running, body: bytes) -> None:
    assert error_of(server.client.post(PATH, content=body))["status"] == 400


def test_a_schema_as_deep_as_json_may_be_is_refused(server: Running) -> None:
    deep: Any = {"type": "string"}
    for _ in range(60):
        deep = {"type": "object", "properties": {"a": deep}}
    error = refusal(server, text={"format": {**SHAPED["format"], "schema": deep}})
    assert (error["status"], error["param"]) == (400, "text.format.schema")
    assert answer(server, tools=[{**WEATHER, "parameters": deep}])["tools"][0]["parameters"] == deep


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "text", "output", "call_id", "name", "arguments", "format"]
            ),
            inner | st.sampled_from(["message", "function_call", "input_text", "user", "assistant"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=json_values | st.lists(json_values, max_size=4),
    fields=st.dictionaries(st.sampled_from(sorted(openais_fields() - {"model"})), json_values, max_size=3),
)
def test_no_body_makes_the_server_fail(server: Running, items: Any, fields: dict[str, Any]) -> None:
    response = server.client.post(PATH, content=json.dumps({**HELLO, "input": items, **fields}))
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error_of(response)
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert framed_events(response.text)[-1]["type"] == "response.completed"
    else:
        checked(response.json())


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(start: Start) -> None:
    server = start(ScriptedEngine(context_length=100))
    error = refusal(server, input="a" * 100)
    assert (error["status"], error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    assert "the input is 119 tokens" in error["message"]
    error = refusal(server, input="a" * 10_000)
    assert error["param"] == "input"
    assert "10000 characters in the input" in error["message"]
    error = refusal(server, max_output_tokens=77)
    assert "max_output_tokens can be 76" in error["message"]


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


def test_the_schema_tells_the_body_the_answer_and_the_events(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    operation = schema["paths"][PATH]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["required"]) == {"model", "input"}
    assert openais_fields() | {"steering", "chat_template_kwargs", *SAMPLING} == set(body["properties"])
    answers = operation["responses"]["200"]["content"]
    assert set(answers) == {"application/json", "text/event-stream"}
    assert set(answers["application/json"]["schema"]["properties"]) == set(Response.__annotations__)
    for reference in references(operation):
        target: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/")]
    for path, method in (("", "get"), ("", "delete"), ("/cancel", "post"), ("/input_items", "get")):
        told = schema["paths"][f"{PATH}/{{response_id}}{path}"][method]["responses"]
        assert "404" in told
        assert "200" not in told


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose engine's card is that of a model that takes images."""
    loaded = load_tiny_vlm("llava", tmp_path_factory.mktemp("llava"))
    engine = ScriptedEngine(lambda job: "seen")
    engine.card = replace(
        engine.card,
        tokenizer=loaded.tokenizer,
        vocabulary_size=loaded.vocabulary_size,
        pictured=pictured_of(loaded),
    )
    with running(small_store(), engine, max_images=2) as started:
        yield started


def image(url: str) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url, "detail": "auto"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


URL = url_of(as_bytes(noise((16, 16), 1)))


def test_images_go_the_way_of_chats(seeing: Running) -> None:
    answer(seeing, input=[user(TEXT_PART, image(URL))])
    chat = {
        "role": "user",
        "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": URL}}],
    }
    seeing.answer(messages=[chat])
    mine, chats = seeing.engine.jobs[-2:]
    assert mine.prompt == chats.prompt
    assert mine.images is not None
    assert mine.images.spans == chats.images.spans


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([user(TEXT_PART, image("data:image/png;base64,AAAA"))], f"{PARTS}[1].image_url"),
        ([USER, user(image("https://example.com/a.png"))], "input[1].content[0].image_url"),
        ([user(image(URL)), user(image(URL), image(URL))], "input[1].content[1].image_url"),
        ([USER, CALLED, {**RESULT, "output": [image("no")]}], "input[2].output[0].image_url"),
        ([USER, user({**TEXT_PART, "text": "see <image>"})], "input[1].content"),
    ],
)
def test_an_image_that_cannot_be_seen_is_named(seeing: Running, items: Any, param: str) -> None:
    for instructions in (None, "Look."):
        error = refusal(seeing, input=items, instructions=instructions)
        assert (error["status"], error["param"]) == (400, param)


def test_a_model_of_words_takes_no_images(server: Running) -> None:
    error = refusal(server, input=[user(TEXT_PART, image(URL))])
    assert (error["code"], error["param"]) == ("unsupported_parameter", f"{PARTS}[1].image_url")
