"""The official openai client against the server."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from server.engine.scripted import ScriptedEngine
from tests.server.running import Running

MESSAGES: Any = [{"role": "user", "content": "hello"}]


def client_of(server: Running, api_key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0)


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with client_of(server) as opened:
        yield opened


def test_it_reads_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="scripted", messages=MESSAGES, n=2, logprobs=True, top_logprobs=1
    )
    assert [choice.message.content for choice in answer.choices] == ["hello", "hello"]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[1].logprobs is not None
    assert answer.choices[1].logprobs.content is not None
    assert answer.choices[1].logprobs.content[0].token == "h"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 24


def test_it_reads_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="scripted", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


def test_its_stream_helper_rebuilds_the_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="scripted", messages=MESSAGES, n=2) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert [choice.message.content for choice in answer.choices] == ["hello", "hello"]


def test_it_steers_through_extra_body_and_sees_the_proof(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="scripted", messages=MESSAGES, extra_body={"steering": {"profile": "cheerful", "strength": 0.5}}
    )
    assert answer.model_extra is not None
    assert answer.model_extra["steering"][0]["profile"] == "cheerful"


def test_it_steers_through_the_models_it_lists(client: openai.OpenAI) -> None:
    models = [model.id for model in client.models.list()]
    assert models == ["scripted", "scripted:cheerful", "scripted:concise"]
    answer = client.chat.completions.create(model=models[1], messages=MESSAGES)
    assert answer.choices[0].message.content == "cheerful*1: hello"
    assert client.models.retrieve(models[1]).id == models[1]


def test_the_async_client_reads_several_streams_at_once(server: Running) -> None:
    async def read(client: openai.AsyncOpenAI, question: str) -> str:
        stream = await client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": question}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def read_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            return await asyncio.gather(*(read(client, f"q{number}") for number in range(4)))

    assert asyncio.run(read_all()) == ["q0", "q1", "q2", "q3"]


def test_mistakes_become_its_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="scripted", messages=MESSAGES, temperature=9)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_keys_are_checked(start: Any) -> None:
    server = start(api_key=("good",))
    with client_of(server, "bad") as client, pytest.raises(openai.AuthenticationError) as refused:
        client.models.list()
    assert refused.value.code == "invalid_api_key"
    with client_of(server, "good") as client:
        assert client.models.list().data


def test_trouble_becomes_its_exceptions(start: Any) -> None:
    full = start(ScriptedEngine(capacity=0))
    with client_of(full) as client, pytest.raises(openai.InternalServerError) as busy:
        client.chat.completions.create(model="scripted", messages=MESSAGES)
    assert busy.value.status_code == 503
    failing = start(ScriptedEngine(fail_on="ll"))
    with client_of(failing) as client, pytest.raises(openai.APIError) as failed:
        list(client.chat.completions.create(model="scripted", messages=MESSAGES, stream=True))
    assert failed.value.code == "generation_failed"


def test_an_overloaded_server_is_tried_again(start: Any) -> None:
    engine = ScriptedEngine(capacity=0)
    server = start(engine)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=2) as client:
        import threading

        timer = threading.Timer(0.3, setattr, (engine, "capacity", 1))
        timer.start()
        answer = client.chat.completions.create(model="scripted", messages=MESSAGES)
        timer.join()
    assert answer.choices[0].message.content == "hello"
