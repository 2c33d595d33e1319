"""/tokenize, /detokenize and /version: what the served model's tokenizer says, and what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from server.engine.scripted import ScriptedEngine
from server.routes.tokens import Detokenized, Tokenized
from steering.picturing import pictured_of
from tests.server.running import HELLO, Running, error_of
from tests.server.test_completions import beginning_engine
from tests.server.test_operations import references
from tests.server.test_tools import WEATHER
from tests.tiny_vlms import load_tiny_vlm

USER = {"role": "user", "content": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
ANSWERS = {"/tokenize": TypeAdapter(Tokenized), "/detokenize": TypeAdapter(Detokenized)}


def ask(server: Running, path: str, **fields: Any) -> dict[str, Any]:
    response = server.client.post(path, json=fields)
    assert response.status_code == 200, response.text
    ANSWERS[path].validate_json(response.content, strict=True)
    return response.json()


def refusal(server: Running, path: str, **fields: Any) -> dict[str, Any]:
    response = server.client.post(path, json=fields)
    assert response.status_code >= 400, response.text
    return error_of(response)


def test_a_text_is_counted_and_tokenised(server: Running) -> None:
    answer = ask(server, "/tokenize", model="scripted", prompt="hé<|im_end|>")
    assert answer == {"count": 4, "max_model_len": 4096, "tokens": [104, 195, 169, 257], "token_strs": None}
    told = ask(server, "/tokenize", prompt="h<|im_end|>", return_token_strs=True)
    assert told["token_strs"] == ["h", "<|im_end|>"]
    assert ask(server, "/tokenize", prompt="")["count"] == 0


def test_a_conversation_is_counted_as_chat_counts_it(server: Running) -> None:
    told = ask(server, "/tokenize", model="scripted", messages=HELLO["messages"])
    assert told["count"] == server.answer()["usage"]["prompt_tokens"]
    assert tuple(told["tokens"]) == server.engine.jobs[-1].prompt
    closed = ask(server, "/tokenize", messages=HELLO["messages"], add_generation_prompt=False)
    assert closed["tokens"] == told["tokens"][: closed["count"]]
    opening = ask(server, "/detokenize", tokens=told["tokens"][closed["count"] :])
    assert opening == {"prompt": "<|im_start|>assistant\n"}


def test_tools_calls_and_results_are_counted_as_chat_counts_them(server: Running) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    for fields in ({"messages": [USER], "tools": [WEATHER]}, {"messages": messages, "tools": [WEATHER]}):
        told = ask(server, "/tokenize", **fields)
        server.answer(**fields)
        assert tuple(told["tokens"]) == server.engine.jobs[-1].prompt
    told = ask(server, "/tokenize", messages=[USER], tools=[])
    assert told == ask(server, "/tokenize", messages=[USER])
    assert ask(server, "/tokenize", prompt="a", tools=[])["count"] == 1


def test_a_text_is_tokenised_as_completions_read_it(start: Any) -> None:
    server = start(beginning_engine())
    for fields in ({}, {"add_special_tokens": False}, {"add_special_tokens": True}):
        told = ask(server, "/tokenize", prompt="hi", **fields)
        body = {"model": "scripted", "prompt": "hi", **fields}
        assert server.client.post("/v1/completions", json=body).status_code == 200
        assert tuple(told["tokens"]) == server.engine.jobs[-1].prompt
    assert ask(server, "/tokenize", prompt="hi")["tokens"] == [256, 104, 105, 257]


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=20))
def test_what_was_tokenised_is_told_back(server: Running, text: str) -> None:
    tokens = ask(server, "/tokenize", prompt=text)["tokens"]
    assert ask(server, "/detokenize", tokens=tokens) == {"prompt": text}


def test_special_tokens_are_part_of_the_text_told_back(server: Running) -> None:
    assert ask(server, "/detokenize", model="scripted", tokens=[256, 104, 257]) == {
        "prompt": "<|im_start|>h<|im_end|>"
    }


def test_a_text_beyond_the_context_is_counted_all_the_same(start: Any) -> None:
    server = start(ScriptedEngine(context_length=20))
    told = ask(server, "/tokenize", prompt="a" * 1000)
    assert (told["count"], told["max_model_len"]) == (1000, 20)


def test_the_models_names_and_their_steering_are_known(server: Running) -> None:
    assert ask(server, "/tokenize", model="scripted:cheerful", prompt="hi")["count"] == 2
    assert refusal(server, "/tokenize", model="gpt-4", prompt="hi")["code"] == "model_not_found"
    assert refusal(server, "/detokenize", model="", tokens=[])["code"] == "model_not_found"
    assert refusal(server, "/tokenize", model="scripted:nobody", prompt="a")["code"] == "profile_not_found"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a", "messages": [USER]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": [1]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].image_url"),
        ({"messages": [USER, {"role": "system", "content": "late"}]}, "messages"),
        ({"messages": [USER], "add_special_tokens": True}, "add_special_tokens"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "a", "add_special_tokens": "no"}, "add_special_tokens"),
        ({"prompt": "a", "tools": [WEATHER]}, "tools"),
        ({"messages": [USER], "tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ({"messages": [USER], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [USER], "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": [USER], "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"prompt": "a", "text": "b"}, "text"),
        ({"model": 3, "prompt": "a"}, "model"),
    ],
)
def test_what_cannot_be_tokenised_is_refused_with_its_field(server: Running, fields: Any, param: str) -> None:
    error = refusal(server, "/tokenize", **fields)
    assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "tokens"),
        ({"tokens": None}, "tokens"),
        ({"tokens": "a"}, "tokens"),
        ({"tokens": 3}, "tokens"),
        ({"tokens": [-1]}, "tokens"),
        ({"tokens": [258]}, "tokens"),
        ({"tokens": [10**30]}, "tokens"),
        ({"tokens": [1, "a"]}, "tokens[1]"),
        ({"tokens": [True]}, "tokens[0]"),
        ({"tokens": [[1]]}, "tokens[0]"),
        ({"tokens": ["x"] * 300_000}, "tokens[0]"),
        ({"tokens": [1], "prompt": "a"}, "prompt"),
    ],
)
def test_what_are_no_tokens_is_refused_with_its_field(server: Running, fields: Any, param: str) -> None:
    error = refusal(server, "/detokenize", **fields)
    assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["model", "prompt", "messages", "tokens", "add_special_tokens", "return_token_strs"])


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(ANSWERS)), st.dictionaries(names, json_values, max_size=3))
def test_no_body_makes_the_server_fail(server: Running, path: str, fields: dict[str, Any]) -> None:
    response = server.client.post(path, content=json.dumps(fields))
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        error_of(response)


def test_a_model_that_takes_images_counts_words_alone(start: Any, tmp_path: Any) -> None:
    loaded = load_tiny_vlm("llava", tmp_path)
    engine = ScriptedEngine(lambda job: "seen")
    engine.card = replace(engine.card, tokenizer=loaded.tokenizer, pictured=pictured_of(loaded))
    server = start(engine)
    told = ask(server, "/tokenize", messages=[USER])
    assert told["count"] == server.answer(messages=[USER])["usage"]["prompt_tokens"]
    assert ask(server, "/tokenize", messages=[USER], add_generation_prompt=False)["count"] < told["count"]
    pictured = [{"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE]}]
    error = refusal(server, "/tokenize", messages=pictured)
    assert (error["status"], error["param"]) == (400, "messages[0].content[1].image_url")


def test_the_version_is_told(server: Running) -> None:
    from importlib.metadata import version

    assert server.client.get("/version").json() == {"version": version("grainserve")}


def test_the_schema_tells_the_bodies_and_the_answers(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    assert "/version" in schema["paths"]
    for path, answer in (("/tokenize", Tokenized), ("/detokenize", Detokenized)):
        operation = schema["paths"][path]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert "model" in body["properties"]
        assert set(operation["responses"]) == {"200", "4XX", "5XX"}
        told = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(told["properties"]) == set(answer.__annotations__)
        for reference in references(operation):
            target: Any = schema
            for part in reference.removeprefix("#/").split("/"):
                target = target[part.replace("~1", "/")]
