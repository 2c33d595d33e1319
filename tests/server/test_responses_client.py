"""The official openai client against /v1/responses: whole, streamed, parsed, calling, and refused."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.lib._tools import ResponsesPydanticFunctionTool
from openai.types.responses import Response
from pydantic import BaseModel

from server.engine.scripted import ScriptedEngine
from tests.server.asking_responses import CITY, USER, WEATHER, Start
from tests.server.running import Running
from tests.server.test_responses_images import URL
from tests.server.test_tools import CALL, prompt_text, says

HELLO: Any = {"model": "scripted", "input": "hello"}


class Person(BaseModel):
    name: str
    age: int


class City(BaseModel):
    city: str


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with client_of(server) as opened:
        yield opened


def strictly(response: Response) -> Response:
    """Validate the response by the client's own types, which the client itself does not."""
    return Response.model_validate_json(response.model_dump_json(by_alias=True), strict=True)


def test_it_reads_a_whole_response(client: openai.OpenAI) -> None:
    response = client.responses.create(
        **HELLO,
        instructions="Be kind.",
        include=["message.output_text.logprobs"],
        top_logprobs=1,
        metadata={"a": "b"},
        store=True,
    )
    assert strictly(response).output_text == response.output_text == "hello"
    assert (response.status, response.metadata) == ("completed", {"a": "b"})
    assert response.usage is not None
    assert response.usage.output_tokens == 6


def test_it_reads_a_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(**HELLO, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "hello"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed"
    assert strictly(last.response).output_text == "hello"


def test_its_stream_helper_rebuilds_the_response(client: openai.OpenAI) -> None:
    with client.responses.stream(**HELLO) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert snapshots == ["h", "he", "hel", "hell", "hello"]
    assert response.output_text == "hello"


def test_it_parses_what_is_kept_to_a_model(start: Start) -> None:
    server = start(says('{"name": "Ann", "age": 7}'))
    with client_of(server) as client:
        response = client.responses.parse(**HELLO, text_format=Person)
        assert response.output_parsed == Person(name="Ann", age=7)
        with client.responses.stream(**HELLO, text_format=Person) as stream:
            done = [event for event in stream if event.type == "response.output_text.done"]
            assert stream.get_final_response().output_parsed == Person(name="Ann", age=7)
        assert done[0].parsed == Person(name="Ann", age=7)
    assert '"name"' in server.engine.jobs[-1].sampling.grammar.schema


def test_it_calls_and_sends_back_what_came(start: Start) -> None:
    server = start(says(f"Let me look. {CALL}"))
    tools: Any = [{**WEATHER, "strict": True}]
    with client_of(server) as client:
        first = client.responses.parse(model="scripted", input=[USER], tools=tools)
        _words, call = first.output
        assert call.type == "function_call"
        assert call.parsed_arguments == {"city": "Oslo"}
        with client.responses.stream(model="scripted", input=[USER], tools=tools) as stream:
            assert [item.type for item in stream.get_final_response().output] == ["message", "function_call"]
        plain = client.responses.create(model="scripted", input=[USER], tools=tools).output
        outputs: Any = (
            (first.output, first.output),
            (plain, [each.to_dict() for each in plain]),
            (plain, [each.model_dump() for each in plain]),
        )
        for came, output in outputs:
            result: Any = {"type": "function_call_output", "call_id": came[-1].call_id, "output": "rain"}
            client.responses.create(model="scripted", input=[USER, *output, result], tools=tools)
            told = prompt_text(server.engine.jobs[-1])
            assert "Let me look." in told
            assert "<tool_response>\nrain\n</tool_response>" in told


def test_it_makes_tools_of_models(start: Start) -> None:
    made = openai.pydantic_function_tool(City, name="weather")["function"]
    tool = ResponsesPydanticFunctionTool(
        {"type": "function", "name": made["name"], "parameters": made.get("parameters"), "strict": True}, City
    )
    with client_of(start(says(CALL))) as client:
        [call] = client.responses.parse(**HELLO, tools=[tool]).output
    assert call.type == "function_call"
    assert call.parsed_arguments == City(city="Oslo")


def test_it_steers_through_extra_body_the_model_and_headers(client: openai.OpenAI) -> None:
    asked: Any = [
        {"extra_body": {"steering": {"profile": "cheerful", "strength": 0.5}}},
        {"model": "scripted:cheerful*0.5"},
        {"extra_headers": {"X-Steering-Profile": "cheerful*0.5"}},
    ]
    for fields in asked:
        response = client.responses.create(**{**HELLO, **fields})
        assert response.output_text == "cheerful*0.5: hello"
        assert response.model_extra is not None
        assert response.model_extra["steering"][0]["strength"] == 0.5


def test_mistakes_become_its_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(**HELLO, previous_response_id="resp_1")
    assert (bad.value.param, bad.value.code) == ("previous_response_id", "unsupported_parameter")
    image: Any = {"type": "input_image", "image_url": URL, "detail": "auto"}
    with pytest.raises(openai.BadRequestError) as blind:
        client.responses.create(model="scripted", input=[{"role": "user", "content": [image]}])
    assert blind.value.param == "input[0].content[0].image_url"
    for find in (
        client.responses.retrieve,
        client.responses.delete,
        client.responses.cancel,
        client.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            find("resp_1")
        assert missing.value.code == "response_not_found"


def test_a_failure_in_a_stream_reaches_it_as_events(start: Start) -> None:
    with client_of(start(ScriptedEngine(fail_on="ll"))) as client:
        *_, error, failed = client.responses.create(**HELLO, stream=True)
        assert error.type == "error"
        assert error.code == "generation_failed"
        assert failed.type == "response.failed"
        assert failed.response.error is not None
        with client.responses.stream(**HELLO) as stream, pytest.raises(RuntimeError):
            stream.get_final_response()


def test_the_async_client_reads_several_streams_at_once(server: Running) -> None:
    async def read(client: openai.AsyncOpenAI, question: str) -> str:
        async with client.responses.stream(model="scripted", input=question) as stream:
            return (await stream.get_final_response()).output_text

    async def read_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            return await asyncio.gather(*(read(client, f"q{number}") for number in range(4)))

    assert asyncio.run(read_all()) == ["q0", "q1", "q2", "q3"]


def test_named_functions_and_their_schemas_go_through(start: Start) -> None:
    server = start(says('{"city": "Oslo"}'))
    choice: Any = {"type": "function", "name": "weather"}
    tools: Any = [{**WEATHER, "parameters": CITY, "strict": None}]
    with client_of(server) as client:
        response = client.responses.create(**HELLO, tools=tools, tool_choice=choice)
    [call] = strictly(response).output
    assert call.type == "function_call"
    assert call.arguments == '{"city": "Oslo"}'
