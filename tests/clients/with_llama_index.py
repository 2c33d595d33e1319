"""LlamaIndex: with_llama_index.py http://..."""

import asyncio
import sys
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


def model(**options: Any) -> OpenAILike:
    ours = {"model": "scripted", "api_base": f"{sys.argv[1]}/v1", "api_key": "any", "context_window": 4096}
    return OpenAILike(**{**ours, "is_chat_model": True, "is_function_calling_model": True, **options})


HELLO = [ChatMessage(role="user", content="hello")]


class Person(BaseModel):
    name: str


def add(a: int) -> int:
    """Add one to a number."""
    return a + 1


def chatting() -> None:
    assert model().chat(HELLO).message.content == "hello"
    assert [piece.delta for piece in model().stream_chat(HELLO)][-1] is not None
    assert list(model().stream_chat(HELLO))[-1].message.content == "hello"


def steering() -> None:
    steered = model(additional_kwargs={"extra_body": {"steering": "cheerful*0.5"}})
    assert steered.chat(HELLO).message.content == "cheerful*0.5: hello"
    assert model(model="scripted:cheerful").chat(HELLO).message.content == "cheerful*1: hello"


def completing() -> None:
    plain = model(is_chat_model=False, is_function_calling_model=False, max_tokens=3)
    assert plain.complete("user\nhello").text == "hel"
    assert list(plain.stream_complete("user\nhello"))[-1].text == "hel"


def calling() -> None:
    answer = model().chat_with_tools([FunctionTool.from_defaults(add)], "add 3")
    (call,) = model().get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("add", {"a": 3})
    result = ChatMessage(role="tool", content="4", additional_kwargs={"tool_call_id": call.tool_id})
    told = [ChatMessage(role="user", content="add 3"), answer.message, result]
    assert "4" in str(model().chat_with_tools([FunctionTool.from_defaults(add)], chat_history=told).message)


def shaping() -> None:
    for options in ({}, {"should_use_structured_outputs": True}):
        person = model(**options).as_structured_llm(Person).chat(HELLO).raw
        assert isinstance(person, Person)
        assert person.name == "hello"


async def asynchronous() -> None:
    assert (await model().achat(HELLO)).message.content == "hello"
    pieces = [piece.delta async for piece in await model().astream_chat(HELLO)]
    assert "".join(piece or "" for piece in pieces) == "hello"


if __name__ == "__main__":
    for check in (chatting, steering, completing, calling, shaping):
        check()
        print(check.__name__)
    asyncio.run(asynchronous())
