"""Asking /v1/responses in tests: bodies, and answers that OpenAI's own types know."""

import json
from collections.abc import Callable
from typing import Any

import httpx
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from server.response_events import StreamEvent
from server.response_replies import Response
from tests.server.running import Running, error_of

Start = Callable[..., Running]

PATH = "/v1/responses"
HELLO = {"model": "scripted", "input": "hello"}
LOGPROBS = ["message.output_text.logprobs"]
ANSWER: TypeAdapter[Any] = TypeAdapter(Response)
EVENT: TypeAdapter[Any] = TypeAdapter(StreamEvent)
OPENAI_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
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


def nested(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {key: tool[key] for key in tool if key != "type"}}


def openais_fields() -> set[str]:
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    return {*ResponseCreateParamsBase.__annotations__, "stream"}


PARTS = "input[0].content"
TEXT_PART = {"type": "input_text", "text": "x"}
