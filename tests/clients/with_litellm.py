"""LiteLLM: with_litellm.py http://..."""

import asyncio
import json
import sys
from typing import Any

import litellm

OURS: dict[str, Any] = {"model": "openai/scripted", "api_base": f"{sys.argv[1]}/v1", "api_key": "any"}
HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


def whole() -> None:
    answer = litellm.completion(**OURS, messages=HELLO, n=2, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in answer.choices] == ["hello", "hello"]
    assert answer.choices[0].logprobs.content[0].token == "h"
    assert answer.usage.prompt_tokens > 0


def streamed() -> None:
    stream = litellm.completion(**OURS, messages=HELLO, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello"
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens == 6


async def asynchronous() -> None:
    answer = await litellm.acompletion(**OURS, messages=HELLO, max_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("he", "length")


def steered() -> None:
    answer = litellm.completion(**OURS, messages=HELLO, extra_body={"steering": "cheerful*0.5"})
    assert answer.choices[0].message.content == "cheerful*0.5: hello"
    assert answer.steering[0]["profile"] == "cheerful"
    named = litellm.completion(**{**OURS, "model": "openai/scripted:cheerful"}, messages=HELLO)
    assert named.choices[0].message.content == "cheerful*1: hello"


def calling() -> None:
    asked: Any = [{"role": "user", "content": "add 3"}]
    message = litellm.completion(**OURS, messages=asked, tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 3})
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "4"}
    answer = litellm.completion(**OURS, messages=[*asked, message, result], tools=[TOOL])
    assert "4" in answer.choices[0].message.content


def shaped() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    answer = litellm.completion(**OURS, messages=HELLO, response_format=wanted)
    assert json.loads(answer.choices[0].message.content) == {"name": "hello"}


def completing() -> None:
    ours = {**OURS, "model": "text-completion-openai/scripted"}
    answer = litellm.text_completion(**ours, prompt="user\nhello", max_tokens=3, logprobs=1)
    assert answer.choices[0].text == "hel"


def responding() -> None:
    answer = litellm.responses(**OURS, input="hello")
    assert answer.output[0].content[0].text == "hello"


def mistaken() -> None:
    told = ""
    try:
        litellm.completion(**OURS, messages=HELLO, temperature=9)
    except litellm.BadRequestError as error:
        told = str(error)
    assert "temperature" in told


if __name__ == "__main__":
    for check in (whole, streamed, steered, calling, shaped, completing, responding, mistaken):
        check()
        print(check.__name__)
    asyncio.run(asynchronous())
