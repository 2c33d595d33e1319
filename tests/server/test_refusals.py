"""Requests that are refused: each with OpenAI's error object, the field's path, and a way out."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine.scripted import ScriptedEngine
from tests.server.running import CHAT, HELLO, Running, error_of

USER = {"role": "user", "content": "hello"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "pirate", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "a", "colour": "red"}]}, "messages[0].colour"),
        ({"messages": [USER, {"role": "system", "content": "late"}]}, "messages"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": {"258": 1}}, "logit_bias.258"),
        ({"logit_bias": {"5\n": 1}}, "logit_bias.5\n"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": "a" * 1001}, "stop"),
        ({"stop_token_ids": [258]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids[0]"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 0}, "top_logprobs"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {"k" * 65: "x"}}, f"metadata.{'k' * 65}"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"user": "x" * 513}, "user"),
        ({"safety_identifier": "x" * 65}, "safety_identifier"),
        ({"prompt_cache_key": "x" * 65}, "prompt_cache_key"),
        ({"messages": [USER] * 2049}, "messages"),
        ({"service_tier": "bogus"}, "service_tier"),
    ],
)
def test_a_wrong_value_is_refused_with_the_fields_path(server: Running, fields: Any, param: str) -> None:
    error = server.refusal(**fields)
    assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    "fields",
    [
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"modalities": ["text", "audio"]},
        {"prediction": {"type": "content", "content": "a"}},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"web_search_options": {}},
    ],
)
def test_what_openai_does_and_this_server_does_not_is_said(server: Running, fields: Any) -> None:
    [param] = fields
    error = server.refusal(**fields)
    assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", param)


def test_an_unknown_field_is_refused_and_the_nearest_is_named(server: Running) -> None:
    error = server.refusal(temprature=1)
    assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
    assert "did you mean 'temperature'?" in error["message"]
    assert server.refusal(mirostat=None)["param"] == "mirostat"


@pytest.mark.parametrize(
    "field", ["prompt_logprobs", "min_tokens", "length_penalty", "top_n", "modality", "function_calls"]
)
def test_nothing_is_named_that_is_another_thing_or_refused_itself(server: Running, field: str) -> None:
    assert server.refusal(**{field: 1})["message"] == f"{field}: unknown field"


@pytest.mark.parametrize(
    ("path", "prompt", "field", "instead"),
    [
        (CHAT, HELLO, "input", "send 'messages'"),
        (CHAT, HELLO, "instructions", "send a message of the role 'system'"),
        (CHAT, HELLO, "max_output_tokens", "send 'max_completion_tokens'"),
        (CHAT, HELLO, "echo", "/v1/completions has it"),
        ("/v1/completions", {"model": "scripted", "prompt": "a"}, "messages", "send 'prompt'; /v1/chat"),
        ("/tokenize", {"messages": [USER]}, "input", "send 'prompt' or 'messages'"),
    ],
)
def test_a_field_of_another_api_is_told_what_to_send_here(
    server: Running, path: str, prompt: Any, field: str, instead: str
) -> None:
    error = error_of(server.client.post(path, json={**prompt, field: "x"}))
    assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", field)
    assert error["message"].startswith(f"{field}: not a field here; {instead}")


@pytest.mark.parametrize(
    ("message", "param", "word"),
    [
        ({"role": "user", "content": [IMAGE]}, "messages[0].content[0].image_url", "takes no images"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0]", "no audio"),
        ({"role": "user", "content": [{"type": "scent"}]}, "messages[0].content[0]", "send 'text'"),
        ({"role": "user", "content": "1", "tool_call_id": "a"}, "messages[0]", "for the role 'tool'"),
        ({"role": "user", "content": "1", "tool_calls": [CALL]}, "messages[0]", "an assistant's"),
        ({"role": "function", "name": "f", "content": "1"}, "messages[0]", "send 'tool'"),
    ],
)
def test_messages_that_make_no_sense_are_refused(
    server: Running, message: Any, param: str, word: str
) -> None:
    error = server.refusal(messages=[message])
    assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", param)
    assert word in error["message"]


def test_a_result_of_no_call_is_told_what_it_lacks(server: Running) -> None:
    error = server.refusal(messages=[USER, {"role": "tool", "content": "1"}])
    assert (error["param"], error["code"]) == ("messages[1].tool_call_id", "missing_required_parameter")
    assert "the id of the call" in error["message"]


CALLS = {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "b"}]}
TWINS = {"role": "assistant", "tool_calls": [CALL, CALL]}


def result(call: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": "1"}


@pytest.mark.parametrize(
    ("messages", "param", "word"),
    [
        ([USER, result("a")], "messages[1].tool_call_id", "'a'; send the call too"),
        ([USER, CALLS, result("c")], "messages[2].tool_call_id", "'c'"),
        ([USER, CALLS, result("a"), result("b"), USER, result("a")], "messages[5].tool_call_id", "'a'"),
        ([USER, CALLS, result("b"), USER], "messages[1].tool_calls[0].id", "the call 'a' has no result"),
        ([USER, CALLS, result("a"), CALLS], "messages[1].tool_calls[1].id", "the call 'b' has no result"),
        ([USER, CALLS, USER], "messages[1].tool_calls[0].id", "the call 'a' has no result"),
        ([USER, CALLS, result("a")], "messages[1].tool_calls[1].id", "the call 'b' has no result"),
        ([USER, CALLS], "messages[1].tool_calls[0].id", "the call 'a' has no result"),
        ([USER, TWINS, result("a"), USER], "messages[1].tool_calls[1].id", "two calls have the id 'a'"),
    ],
)
def test_calls_and_results_come_together(server: Running, messages: Any, param: str, word: str) -> None:
    error = server.refusal(messages=messages)
    assert (error["status"], error["param"]) == (400, param)
    assert word in error["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [USER, CALLS, result("b"), result("a")],
        [USER, CALLS, result("b"), result("a"), USER, CALLS, result("a"), result("b"), USER],
        [USER, CALLS, result("b"), result("a"), {"role": "assistant", "content": "fine"}, USER],
    ],
)
def test_results_may_come_in_any_order(server: Running, messages: Any) -> None:
    server.answer(messages=messages)


def test_a_missing_field_is_named(server: Running) -> None:
    response = server.client.post(CHAT, json={"messages": [USER]})
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", "missing_required_parameter")


@pytest.mark.parametrize("model", ["gpt-4", "scripte", "scripted2", "", "Scripted", "x" * 10_000])
def test_another_model_is_not_found(server: Running, model: str) -> None:
    error = server.refusal(model=model)
    assert (error["status"], error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'scripted'" in error["message"]
    assert len(error["message"]) < 400


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(start: Any) -> None:
    server = start(ScriptedEngine(context_length=100))
    error = server.refusal(messages=[{"role": "user", "content": "a" * 100}])
    assert (error["status"], error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "119 tokens in the messages," in error["message"]
    assert "100 tokens" in error["message"]
    tool = {"type": "function", "function": {"name": "f", "description": "a" * 100}}
    assert "shorten the messages and tools" in server.refusal(tools=[tool])["message"]


def test_a_limit_beyond_the_context_is_refused_with_the_numbers(start: Any) -> None:
    server = start(ScriptedEngine(context_length=100))
    assert server.chat(max_tokens=76).status_code == 200
    error = server.refusal(max_tokens=77)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    for number in ("24", "77", "101", "100", "76"):
        assert number in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"seed": ' + b"1" * 10_000 + b"}",
    ],
)
def test_a_body_that_is_no_json_is_refused(server: Running, body: bytes) -> None:
    error = error_of(server.client.post(CHAT, content=body))
    assert (error["status"], error["code"], error["param"]) == (400, "invalid_json", None)


@pytest.mark.parametrize("body", [b"[]", b'"hello"', b"3", b"null"])
def test_a_body_that_is_no_object_is_refused(server: Running, body: bytes) -> None:
    error = error_of(server.client.post(CHAT, content=body))
    assert (error["status"], error["message"]) == (400, "must be an object")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 400])
@pytest.mark.parametrize("field", ["temperature", "top_p", "presence_penalty", "max_tokens", "seed"])
def test_a_number_that_is_not_finite_is_refused(server: Running, field: str, number: str) -> None:
    body = json.dumps({**HELLO, field: 0}).replace(": 0}", f": {number}}}")
    error = error_of(server.client.post(CHAT, content=body))
    assert (error["status"], error["param"]) == (400, field)


def test_a_body_of_another_type_is_refused(server: Running) -> None:
    body = json.dumps(HELLO)
    response = server.client.post(CHAT, content=body, headers={"content-type": "text/plain"})
    assert error_of(response)["status"] == 415
    typed = {"content-type": "application/json; charset=utf-8"}
    assert server.client.post(CHAT, content=body, headers=typed).status_code == 200


def test_many_mistakes_are_told_briefly(server: Running) -> None:
    error = server.refusal(**{f"field{number}{'x' * 1000}": 1 for number in range(50)})
    assert len(error["param"]) <= 200
    assert error["message"].endswith("and 40 more")
    assert all(len(part) <= 200 for part in error["message"].split("; "))


def test_a_body_of_nothing_but_mistakes_is_refused_without_listing_them(server: Running) -> None:
    error = server.refusal(**{f"field{number}": 1 for number in range(5000)})
    assert (error["status"], error["message"]) == (400, "the body has 5000 mistakes")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FORMAT = '{"type": "json_schema", "json_schema": {"name": "a", "schema": %s}}'
SCHEMA = "response_format.json_schema.schema"
FIELDS = [
    *HELLO,
    "steering",
    "stop",
    "logit_bias",
    "stream_options",
    "n",
    "tools",
    "max_tokens",
    "top_logprobs",
]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4))
def test_no_body_makes_the_server_fail(server: Running, fields: dict[str, Any]) -> None:
    response = server.client.post(CHAT, content=json.dumps({**HELLO, **fields}))
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        error_of(response)


def test_messages_that_cannot_fit_are_refused_before_they_are_tokenised(server: Running) -> None:
    error = server.refusal(messages=[{"role": "user", "content": "x" * 3_000_000}])
    assert (error["status"], error["code"]) == (400, "context_length_exceeded")
    assert "3000000 characters" in error["message"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
def test_compressed_bodies_are_refused_as_such(server: Running, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    error = error_of(server.client.post(CHAT, content=json.dumps(HELLO), headers=headers))
    assert (error["status"], error["code"]) == (415, "unsupported_media_type")
    assert "Content-Encoding" in error["message"]
    headers["content-encoding"] = "identity"
    assert server.client.post(CHAT, content=json.dumps(HELLO), headers=headers).status_code == 200


def test_more_choices_than_can_ever_run_are_refused_for_good(start: Callable[..., Running]) -> None:
    error = start(max_batch_size=1, max_waiting=1).refusal(n=3)
    assert (error["status"], error["param"]) == (400, "n")


def test_a_key_said_twice_among_very_many_is_refused_without_delay(server: Running) -> None:
    keys = ",".join(f'"{number}": 0' for number in range(40_000))
    body = f'{{"model": "scripted", "messages": [], "logit_bias": {{{keys}, "7": 0}}}}'
    body = body.replace('"messages": []', f'"messages": {json.dumps([USER])}')
    begin = time.perf_counter()
    error = error_of(server.client.post(CHAT, content=body, headers={"content-type": "application/json"}))
    assert "'7' stands twice" in error["message"]
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ('"messages": [{"role": "user", "content": "a", "content": "b"}]', "messages[0].content"),
        ('"steering": {"profile": "cheerful", "profile": "formal"}', "steering.profile"),
        ('"metadata": {"a": "1", "a": "2"}', "metadata.a"),
        ('"seed": 1, "seed": 2', "seed"),
        (f'"response_format": {FORMAT % """{"maximum": 1e400}"""}', f"{SCHEMA}.maximum"),
        (f'"response_format": {FORMAT % """{"enum": [1, Infinity]}"""}', f"{SCHEMA}.enum[1]"),
        (f'"response_format": {FORMAT % """{"type": "a", "type": "b"}"""}', f"{SCHEMA}.type"),
    ],
)
def test_what_json_must_not_hold_is_told_by_its_path(server: Running, fields: str, param: str) -> None:
    others = {name: value for name, value in HELLO.items() if f'"{name}"' not in fields}
    body = f"{json.dumps(others)[:-1]}, {fields}}}"
    error = error_of(server.client.post(CHAT, content=body, headers={"content-type": "application/json"}))
    assert (error["status"], error["param"]) == (400, param)


def test_a_number_of_thousands_of_digits_is_refused_briefly(server: Running) -> None:
    for digits in (4299, 4300):
        body = json.dumps({**HELLO, "max_tokens": 0}).replace(": 0", f": {'9' * digits}")
        error = error_of(server.client.post(CHAT, content=body, headers={"content-type": "application/json"}))
        assert error["status"] == 400
        assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"extra_body": {"steering": "cheerful"}}, "an argument of OpenAI's Python client"),
        ({"profile": "cheerful"}, '"steering": {"profile": ...}'),
        ({"steering": {"profile": "cheerful", "version": 1}}, "'cheerful@1'"),
        ({"steering": ["cheerful", "concise"]}, "'cheerful+formal'"),
    ],
)
def test_what_belongs_elsewhere_is_told_where(server: Running, fields: Any, hint: str) -> None:
    assert hint in server.refusal(**fields)["message"]


NAMED = {"type": "function", "function": {"name": "other"}}


def tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name}} for name in names]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"functions": [{"name": "f"}]}, "functions: not supported; send 'tools'"),
        ({"function_call": {"name": "f"}}, "function_call: not supported; send 'tool_choice'"),
        ({"logit_bias": {"the": 1}}, "logit_bias.the: must be a token id, such as '257'"),
        ({"logit_bias": {"258": 1}}, "258 is no token of this model; ids go from 0 to 257"),
        ({"tools": tools("a b")}, "tools[0].function.name: must be 1 to 64 of the letters a to z and A to Z"),
        (
            {"tools": tools("f", "g"), "tool_choice": NAMED},
            "there is no tool named 'other'; the tools are f, g",
        ),
        (
            {"tools": tools(*"abcdefghij"), "tool_choice": NAMED},
            "the tools are a, b, c, d, e, f, g, h and 2 more",
        ),
        ({"stop": list("abcde")}, "stop: must be at most 4 items, there are 5"),
        ({"messages": []}, "messages: must be at least 1 item, there are 0"),
        (
            {"metadata": {str(n): "x" for n in range(17)}},
            "metadata: must be at most 16 items, there are more",
        ),
    ],
)
def test_a_refusal_says_what_can_be_sent_instead(server: Running, fields: Any, told: str) -> None:
    assert told in server.refusal(**fields)["message"]
