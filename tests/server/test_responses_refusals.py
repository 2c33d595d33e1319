"""What a response request may not say: each refusal names the place in the request's own terms."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine.scripted import ScriptedEngine
from tests.server.asking_responses import (
    CALLED,
    CLOCK,
    HELLO,
    LOGPROBS,
    PARTS,
    PATH,
    RESULT,
    SHAPED,
    TEXT_PART,
    USER,
    WEATHER,
    Start,
    answer,
    checked,
    framed_events,
    nested,
    openais_fields,
    refusal,
)
from tests.server.running import Running, error_of


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
        {"functions": [{"name": "f"}]},
        {"verbosity": "low"},
        {"chat_template": "{{ 1 }}"},
        {"continue_final_message": True},
        {"echo": True},
    ],
)
def test_what_openai_does_and_this_server_does_not_is_said(server: Running, fields: Any) -> None:
    error = refusal(server, **fields)
    assert (error["status"], error["code"]) == (400, "unsupported_parameter")
    assert error["param"].split(".")[0] in fields


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": {"role": "user", "content": "x"}}, "input"),
        ({"input": ["x"]}, "input[0]"),
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
        (
            {
                "input": [
                    USER,
                    CALLED,
                    {**CALLED, "call_id": "c2", "arguments": "[1"},
                    RESULT,
                    {**RESULT, "call_id": "c2"},
                ]
            },
            "input[2].arguments",
        ),
        ({"input": [{**RESULT, "output": 3}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [USER, RESULT]}, "input[1].call_id"),
        ({"input": [USER, RESULT, CALLED]}, "input[1].call_id"),
        ({"input": [USER, CALLED, {**RESULT, "call_id": "c2"}]}, "input[2].call_id"),
        ({"input": [CALLED, {**CALLED, "call_id": "c2"}, RESULT, USER]}, "input[1].call_id"),
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
        ({"logit_bias": {"999999": 1}}, "logit_bias.999999"),
        ({"steering": {"profile": "cheerfull"}}, "steering.profile"),
        ({"steering": {"profile": "cheerful", "tokens": "image"}}, "steering.tokens"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"safety_identifier": "x" * 65}, "safety_identifier"),
        ({"stream_options": {}}, "stream_options"),
        ({"service_tier": "bogus"}, "service_tier"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"reasoning": "none"}, "reasoning"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
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


def test_there_are_so_many_items_at_most(server: Running) -> None:
    error = refusal(server, input=[USER] * 2049)
    assert (error["status"], error["code"], error["param"]) == (400, "invalid_value", "input")
    assert "2048" in error["message"]


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(start: Start) -> None:
    server = start(ScriptedEngine(context_length=100))
    error = refusal(server, input="a" * 100)
    assert (error["status"], error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    assert "there are 119 tokens in the input" in error["message"]
    error = refusal(server, input="a" * 10_000)
    assert error["param"] == "input"
    assert "10000 characters in the input" in error["message"]
    error = refusal(server, max_output_tokens=77)
    assert "max_output_tokens can be 76" in error["message"]


@pytest.mark.parametrize(
    ("field", "instead"),
    [
        ("messages", "send 'input'"),
        ("max_tokens", "send 'max_output_tokens'"),
        ("functions", "send 'tools'"),
        ("function_call", "send 'tool_choice'"),
        ("verbosity", "leave it out, or send 'text': {'verbosity': 'medium'}"),
        ("add_generation_prompt", "/v1/chat/completions has it"),
    ],
)
def test_fields_of_chat_are_told_what_to_send_here(server: Running, field: str, instead: str) -> None:
    error = refusal(server, **{field: "x"})
    assert (error["param"], error["message"]) == (field, f"{field}: not a field here; {instead}")


@pytest.mark.parametrize("path", ["/input_tokens", "/compact"])
def test_what_is_done_elsewhere_is_not_found_and_names_it(server: Running, path: str) -> None:
    error = error_of(server.client.post(PATH + path, json=HELLO))
    assert (error["status"], error["code"]) == (404, "not_found")
    assert "/tokenize" in error["message"]
