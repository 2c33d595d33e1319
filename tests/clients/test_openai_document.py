"""Every answer is one that OpenAI's own description of its API allows; `steering` is all that is added."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.environments import HERE, run_python
from tests.server.running import HELLO, Running, error_of, events_of

pytestmark = pytest.mark.clients

# Not GRAINSERVE_*: the server refuses variables of that name that it does not know.
DOCUMENT = os.environ.get("OPENAI_SPEC")
Answer = tuple[str, str, Any]

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}
FLAT_TOOL = {"type": "function", "name": "add", "parameters": PARAMETERS}
NAMED = {"type": "function", "function": {"name": "add"}}
SHAPE = {"type": "json_schema", "json_schema": {"name": "sum", "schema": PARAMETERS}}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cut off": {"max_tokens": 2},
    "choices": {"n": 3, "seed": 1},
    "log-probabilities": {"logprobs": True, "top_logprobs": 3},
    "tools": {"tools": [TOOL]},
    "tools with log-probabilities": {"tools": [TOOL], "logprobs": True},
    "a required tool": {"tools": [TOOL], "tool_choice": "required"},
    "a named tool": {"tools": [TOOL], "tool_choice": NAMED},
    "an object": {"response_format": {"type": "json_object"}},
    "a schema": {"response_format": SHAPE},
    "steered": {"steering": {"profile": "cheerful"}},
    "swept": {"steering": {"profile": "cheerful", "strength": [0, 1]}},
    "metadata": {"metadata": {"a": "b"}, "user": "u", "store": False, "service_tier": "auto"},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompts": {"prompt": ["a", "b"], "n": 2, "best_of": 2},
    "log-probabilities": {"logprobs": 2},
    "echo": {"echo": True, "logprobs": 1, "max_tokens": 0},
    "steered": {"steering": "cheerful"},
}
RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cut off": {"max_output_tokens": 2},
    "instructed": {"instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5, "top_p": 0.5},
    "log-probabilities": LOGPROBS,
    "tools": {"tools": [FLAT_TOOL]},
    "a required tool": {"tools": [FLAT_TOOL], "tool_choice": "required"},
    "a schema": {"text": {"format": {"type": "json_schema", "name": "sum", "schema": PARAMETERS}}},
    "an object": {"text": {"format": {"type": "json_object"}}},
    "steered": {"steering": {"profile": "cheerful"}},
}
REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**HELLO, "temperature": 9}),
    ("/v1/chat/completions", {**HELLO, "model": "gpt-4"}),
    ("/v1/chat/completions", {**HELLO, "steering": "unknown"}),
    ("/v1/completions", {"model": "scripted"}),
    ("/v1/responses", {"model": "scripted", "input": "a", "previous_response_id": "resp_1"}),
    ("/v1/nothing", {}),
]


def answers(client: httpx.Client) -> Iterator[Answer]:
    for name, fields in CHATS.items():
        body = {**HELLO, **fields}
        yield from asked(client, f"chat, {name}", "/v1/chat/completions", body, "ChatCompletion")
    for name, fields in COMPLETIONS.items():
        body = {"model": "scripted", "prompt": "hello", **fields}
        yield from asked(client, f"completion, {name}", "/v1/completions", body, "Completion")
    for name, fields in RESPONSES.items():
        yield from responded(client, f"response, {name}", {"model": "scripted", "input": "hello", **fields})
    yield "models", "ListModelsResponse", client.get("/v1/models").json()
    yield "a model", "Model", client.get("/v1/models/scripted:cheerful").json()
    for path, body in REFUSALS:
        response = client.post(path, json=body)
        error_of(response)
        yield f"error of {path}", "ErrorResponse", response.json()


def drop_known_nulls(name: str, body: dict[str, Any]) -> None:
    """Take out the nulls that OpenAI's servers send, as its examples show, and its schemas do not know.

    They are a response's user and, until it ends, its usage; the usage and the end of a part of a completion
    that are yet to come; and what predicted the first token of an echoed prompt, which nothing did.
    """
    told = body.get("response", body)
    for key in ("user", "usage"):
        if key in told and told[key] is None:
            del told[key]
    if name == "CreateCompletionResponse":
        for choice in body["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
            drop_first_null(choice["logprobs"] or {})


def drop_first_null(logprobs: dict[str, Any]) -> None:
    for key, known in (("token_logprobs", 0.0), ("top_logprobs", {})):
        if key in logprobs and logprobs[key][0] is None:
            logprobs[key][0] = known


def asked(client: httpx.Client, name: str, path: str, body: dict[str, Any], kind: str) -> Iterator[Answer]:
    """Yield the answer, whole and as a stream with its usage."""
    part = "CreateChatCompletionStreamResponse" if kind == "ChatCompletion" else "CreateCompletionResponse"
    yield name, f"Create{kind}Response", client.post(path, json=body).raise_for_status().json()
    for options in ({}, {"include_usage": True}):
        streamed = {**body, "stream": True, "stream_options": options}
        *chunks, done = events_of(client.post(path, json=streamed).raise_for_status().text)
        assert done == "[DONE]"
        for chunk in chunks:
            yield f"{name}, streamed", part, json.loads(chunk)


def responded(client: httpx.Client, name: str, body: dict[str, Any]) -> Iterator[Answer]:
    yield name, "Response", client.post("/v1/responses", json=body).raise_for_status().json()
    text = client.post("/v1/responses", json={**body, "stream": True}).raise_for_status().text
    for event in text.removesuffix("\n\n").split("\n\n"):
        kind, data = event.split("\n")
        told = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {told['type']}"
        yield f"{name}, streamed", "ResponseStreamEvent", told


@pytest.mark.skipif(DOCUMENT is None, reason="OPENAI_SPEC names no copy of OpenAI's openapi.yaml")
def test_openai_describes_every_answer(server: Running, tmp_path: Path) -> None:
    given = list(answers(server.client))
    for _, name, body in given:
        drop_known_nulls(name, body)
    assert len(given) > 200
    (tmp_path / "answers.json").write_text(json.dumps(given), "utf-8")
    script = str(HERE / "with_openai_document.py")
    complaints = run_python("document", tmp_path, script, str(DOCUMENT), str(tmp_path / "answers.json"))
    assert not complaints, complaints
