"""Tools: how the model is told, what is read of its answer, streamed and not, and what is refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI

from server.engine.protocol import GenerationJob
from server.engine.scripted import ScriptedEngine
from server.tool_calls import (
    BARE,
    TAGGED,
    Called,
    Calls,
    NamedReader,
    Read,
    Reader,
    RequiredReader,
    reader_of,
)
from server.tooling import FOREIGN, Tooling, call_schema, in_words, tool_format
from server.wire.structure import Function
from tests.server.running import Running

Start = Callable[..., Running]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
KNOWN: dict[str, dict[str, Any]] = {"weather": {}, "clock": {}}


def tagged() -> Reader:
    return reader_of(Calls(TAGGED, KNOWN))


def bare() -> Reader:
    return reader_of(Calls(BARE, KNOWN))


def says(text: str) -> ScriptedEngine:
    return ScriptedEngine(lambda _job: text)


def prompt_text(job: GenerationJob) -> str:
    return bytes(token for token in job.prompt if token < 256).decode()


def called(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message["tool_calls"]]


def joined(read: list[Read]) -> tuple[str, list[tuple[str, str]]]:
    """Return the words and the calls of what was read, pieces put together."""
    calls: dict[int, list[str]] = {}
    for part in read:
        if isinstance(part, Called):
            name, arguments = calls.setdefault(part.index, ["", ""])
            calls[part.index] = [name + (part.name or ""), arguments + part.arguments]
    words = "".join(part for part in read if isinstance(part, str))
    return words, [(name, arguments) for name, arguments in calls.values()]


def test_a_call_is_read_out_of_an_answer(start: Start) -> None:
    running = start(says(f"Let me look.\n{CALL}"))
    answer = running.answer(tools=[WEATHER, CLOCK])
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me look."
    assert called(choice["message"]) == [("weather", {"city": "Oslo"})]
    assert choice["message"]["tool_calls"][0]["id"].startswith("call_")


def test_an_answer_without_a_call_stays_as_it_is(start: Start) -> None:
    choice = start(says("It is 5 < 6, <tool> and all.")).answer(tools=[WEATHER])["choices"][0]
    assert choice["message"] == {
        "role": "assistant",
        "content": "It is 5 < 6, <tool> and all.",
        "refusal": None,
    }
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("text", [f"One: {CALL}\n{CALL}", CALL, "words <tool_call>broken", "plain", ""])
def test_a_stream_says_what_the_whole_answer_says(start: Start, text: str) -> None:
    running = start(says(text))
    whole = running.answer(tools=[WEATHER])["choices"][0]
    words, calls, finish = "", {}, None
    for chunk in running.chunks(tools=[WEATHER]):
        for choice in chunk["choices"]:
            words += choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
            for call in choice["delta"].get("tool_calls", []):
                known = calls.setdefault(call["index"], {"name": "", "arguments": ""})
                known["name"] += call["function"].get("name") or ""
                known["arguments"] += call["function"].get("arguments") or ""
    assert words == (whole["message"]["content"] or "")
    assert finish == whole["finish_reason"]
    told = [call["function"] for call in whole["message"].get("tool_calls", [])]
    assert list(calls.values()) == told


def test_calls_of_unknown_functions_stay_words(start: Start) -> None:
    text = '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'
    choice = start(says(text)).answer(tools=[WEATHER])["choices"][0]
    assert choice["message"]["content"] == text
    assert "tool_calls" not in choice["message"]


def test_one_call_is_the_most_where_calls_may_not_be_parallel(start: Start) -> None:
    running = start(says(f"{CALL}{CALL}"))
    assert len(running.answer(tools=[WEATHER])["choices"][0]["message"]["tool_calls"]) == 2
    choice = running.answer(tools=[WEATHER], parallel_tool_calls=False)["choices"][0]
    assert called(choice["message"]) == [("weather", {"city": "Oslo"})]
    assert running.engine.jobs[-1].sampling.stop == ("</tool_call>",)


def test_a_named_function_is_all_that_is_generated(start: Start) -> None:
    running = start(says('{"city": "Oslo"}'))
    choice_of = {"type": "function", "function": {"name": "weather"}}
    choice = running.answer(tools=[WEATHER, CLOCK], tool_choice=choice_of)["choices"][0]
    assert called(choice["message"]) == [("weather", {"city": "Oslo"})]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "stop"
    assert json.loads(running.engine.jobs[-1].sampling.grammar.schema) == WEATHER["function"]["parameters"]


def test_a_required_call_is_kept_to_the_tools(start: Start) -> None:
    running = start(says('{"name": "weather", "arguments": {"city": "Oslo"}}'))
    choice = running.answer(tools=[WEATHER, CLOCK], tool_choice="required")["choices"][0]
    assert called(choice["message"]) == [("weather", {"city": "Oslo"})]
    assert choice["finish_reason"] == "tool_calls"
    schema = json.loads(running.engine.jobs[-1].sampling.grammar.schema)
    assert [each["properties"]["name"]["const"] for each in schema["anyOf"]] == ["weather", "clock"]


def test_a_call_that_was_cut_off_is_not_lost(start: Start) -> None:
    running = start(says('{"name": "weather", "arguments": {"city": "Oslo"}}'))
    room = len('{"name": "weather", "arguments": {"city": "')
    cut = running.answer(tools=[WEATHER], tool_choice="required", max_tokens=room)["choices"][0]
    assert cut["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "'}
    assert cut["finish_reason"] == "length"
    early = running.answer(tools=[WEATHER], tool_choice="required", max_tokens=12)["choices"][0]
    assert (early["message"]["content"], early["finish_reason"]) == ("", "length")


def test_arguments_are_passed_on_as_they_were_written(start: Start) -> None:
    arguments = '{"city":  "Oslo", "day": 1.10, "far": 9e9999, "n": 12345678901234567890}'
    text = f'{{"name": "weather", "arguments": {arguments}}}'
    choice = start(says(text)).answer(tools=[WEATHER], tool_choice="required")["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == arguments


def test_the_model_is_told_of_the_tools_unless_none_is_wanted(start: Start) -> None:
    running = start(says("fine"))
    running.answer(tools=[WEATHER])
    assert "The weather of a city." in prompt_text(running.engine.jobs[-1])
    running.answer(tools=[WEATHER], tool_choice="none")
    assert "weather" not in prompt_text(running.engine.jobs[-1])


def test_calls_and_results_of_before_reach_a_model_whose_template_knows_none(start: Start) -> None:
    running = start(says("It rains."))
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    running.answer(messages=messages, tools=[WEATHER])
    told = prompt_text(running.engine.jobs[-1])
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>' in told
    assert "<tool_response>\nrain\n</tool_response>" in told


def test_a_call_comes_back_with_what_litellm_keeps_beside_it(start: Start) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    kept = {"role": "assistant", "tool_calls": [call], "provider_specific_fields": {"refusal": None}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    asked = {"role": "user", "content": "Weather?"}
    start().answer(messages=[asked, kept, result], tools=[WEATHER])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER] * 129}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [WEATHER], "tool_choice": "required", "stop": "a"}, "stop"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_tools_that_cannot_be_are_refused(server: Running, fields: Any, param: str) -> None:
    error = server.refusal(**fields)
    assert (error["status"], error["param"]) == (400, param)


def test_arguments_that_are_no_object_are_refused(server: Running) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "[1"}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    error = server.refusal(messages=[{"role": "assistant", "tool_calls": [call]}, result])
    assert error["param"] == "messages[0].tool_calls[0].function.arguments"


def test_openais_client_reads_calls(start: Start) -> None:
    running = start(says(CALL))
    client = OpenAI(base_url=f"{running.url}/v1", api_key="none")
    asked: Any = {"model": "scripted", "messages": [{"role": "user", "content": "?"}], "tools": [WEATHER]}
    with client:
        (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
        with client.chat.completions.stream(**asked) as stream:
            (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
        assert json.loads(streamed.function.arguments) == {"city": "Oslo"}


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("make", "text", "words", "calls"),
    [
        (tagged, f"a {CALL} b", "a b", [("weather", '{"city": "Oslo"}')]),
        (tagged, "a <tool_ca", "a <tool_ca", []),
        (tagged, CALL[:-12], "", [("weather", '{"city": "Oslo"}')]),
        (tagged, "  ", "  ", []),
        (
            bare,
            '[{"name": "clock"}, {"name": "weather", "parameters": {"city": "Oslo"}}]',
            "",
            [("clock", "{}"), ("weather", '{"city": "Oslo"}')],
        ),
        (bare, '{"name": "other"}', '{"name": "other"}', []),
        (bare, "words {", "words {", []),
        (lambda: NamedReader("clock"), '{"a": 1}', "", [("clock", '{"a": 1}')]),
        (RequiredReader, '{"name": "clock", "arguments": {}}', "", [("clock", "{}")]),
    ],
)
def test_readers_read_the_same_however_text_is_cut(
    make: Callable[[], Any], text: str, words: str, calls: Any, size: int
) -> None:
    reader = make()
    read = [part for begin in range(0, len(text), size) for part in reader.feed(text[begin : begin + size])]
    read += reader.end()
    assert joined(read) == (words, calls)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "bad"}}])
def test_a_schema_that_cannot_be_followed_names_its_tool(start: Start, choice: Any) -> None:
    bad = {"type": "function", "function": {"name": "bad", "parameters": {"type": "object", "not": {}}}}
    running = start(says(""))
    error = running.refusal(tools=[CLOCK, WEATHER, bad], tool_choice=choice)
    assert (error["status"], error["code"]) == (400, "invalid_json_schema")
    assert error["param"] == "tools[2].function.parameters"
    assert running.chat(tools=[CLOCK, bad]).status_code == 200


def test_references_in_a_tools_schema_stay_within_it() -> None:
    parameters = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}
    moved = call_schema(3, Function(name="f", parameters=parameters))["properties"]["arguments"]
    assert moved["$ref"] == "#/anyOf/3/properties/arguments/$defs/a"
    assert moved["$defs"]["a"]["items"]["$ref"] == "#/anyOf/3/properties/arguments/$defs/a"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_tools_schema_may_have_an_address_of_its_own(start: Start, choice: Any) -> None:
    parameters = {
        "$id": "https://example.org/f",
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"enum": ["x"]}},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    answer = start(says("{}")).answer(tools=[tool, WEATHER], tool_choice=choice)
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"properties": {"a": {}}}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, True),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}, {"type": "string"}),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, None),
        ({}, None),
    ],
)
def test_a_forced_call_has_no_arguments_beside_those_that_are_named(said: Any, kept: Any) -> None:
    schema = call_schema(0, Function(name="f", parameters=said))["properties"]["arguments"]
    assert schema.get("additionalProperties") == kept
    assert schema["type"] == "object"


def test_what_only_looks_like_a_reference_stays_as_it_is() -> None:
    parameters = {
        "type": "object",
        "properties": {"const": {"$ref": "#/$defs/a"}, "b": {"const": {"$ref": "#/x"}}, "c": {"$ref": "#a"}},
        "$defs": {"a": {"$anchor": "a", "enum": [{"$ref": "#"}]}},
    }
    moved = call_schema(0, Function(name="f", parameters=parameters))["properties"]["arguments"]
    assert moved["properties"]["const"] == {"$ref": "#/anyOf/0/properties/arguments/$defs/a"}
    assert moved["properties"]["b"] == {"const": {"$ref": "#/x"}}
    assert moved["properties"]["c"] == {"$ref": "#a"}
    assert moved["$defs"]["a"]["enum"] == [{"$ref": "#"}]


def test_a_template_that_renders_tools_is_recognised(server: Running) -> None:
    tokenizer = server.engine.card.tokenizer
    own = tokenizer.chat_template
    assert tool_format(tokenizer, None).native is False
    try:
        tokenizer.chat_template = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}" + own
        found = tool_format(tokenizer, None)
        assert (found.native, found.calls) == (True, BARE)
        tokenizer.chat_template += "{# <tool_call> #}"
        assert tool_format(tokenizer, None).calls == TAGGED
    finally:
        tokenizer.chat_template = own


def test_a_system_message_keeps_its_words_beside_the_tools() -> None:
    tooling = Tooling((Function(name="clock"),), "auto", False, True, FOREIGN)
    first, _ = in_words(
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "?"}], tooling
    )
    assert first["content"].startswith("Be kind.\n\n")
    assert '"clock"' in first["content"]
    assert '{"name": "...", "arguments": {...}}' in first["content"]
