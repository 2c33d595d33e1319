"""Answers of a given shape, sweeps of strengths, messages that go on: what a request may ask, over HTTP."""

import json
from typing import Any

import pytest

from server.engine.scripted import ScriptedEngine
from tests.server.running import Running, error_of
from tests.server.test_tools import Start, prompt_text

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
SHAPED = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}


def test_a_schema_reaches_the_engine_and_the_answer_comes_back(start: Start) -> None:
    running = start(ScriptedEngine(lambda _job: '{"name": "Ann"}'))
    choice = running.answer(response_format=SHAPED)["choices"][0]
    assert json.loads(choice["message"]["content"]) == {"name": "Ann"}
    grammar = running.engine.jobs[-1].sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.schema) == PERSON


def test_json_objects_are_asked_for_and_text_is_free(start: Start) -> None:
    running = start()
    running.answer(response_format={"type": "json_object"})
    assert json.loads(running.engine.jobs[-1].sampling.grammar.schema) == {"type": "object"}
    running.answer(response_format={"type": "text"})
    assert running.engine.jobs[-1].sampling.grammar is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format", "invalid_value"),
        ({"response_format": "json"}, "response_format", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {**SHAPED, "json_schema": {"name": "a", "schema": {"type": "x"}}}},
            "response_format.json_schema.schema",
            "invalid_json_schema",
        ),
        ({"response_format": SHAPED, "ignore_eos": True}, "ignore_eos", "invalid_value"),
        ({"response_format": SHAPED, "stop": ["a"]}, "stop", "invalid_value"),
        ({"response_format": SHAPED, "stop_token_ids": [1]}, "stop_token_ids", "invalid_value"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(server: Running, fields: Any, param: str, code: str) -> None:
    error = server.refusal(**fields)
    assert (error["status"], error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize("number", ["1e400", "NaN", "-Infinity"])
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(server: Running, number: str) -> None:
    schema = f'{{"type": "json_schema", "json_schema": {{"name": "a", "schema": {{"const": {number}}}}}}}'
    asked = '"model": "scripted", "messages": [{"role": "user", "content": "a"}]'
    body = f'{{{asked}, "response_format": {schema}}}'
    headers = {"content-type": "application/json"}
    answer = server.client.post("/v1/chat/completions", content=body, headers=headers)
    error = error_of(answer)
    assert error["status"] == 400
    assert "finite" in error["message"]


def test_a_sweep_changes_the_strength_alone(start: Start) -> None:
    running = start()
    running.answer(steering={"profile": "cheerful", "strength": [0, 1, 1]}, seed=7)
    assert [job.sampling.seed for job in running.engine.jobs] == [7, 7, 7]


def proven(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(term["profile"], term["positions"]) for term in answer["steering"]]


def test_steering_pauses_in_answers_of_a_given_shape(start: Start) -> None:
    running = start()
    answer = running.answer(response_format=SHAPED, steering="cheerful")
    assert proven(answer) == [("cheerful", "prompt")]
    assert answer["steering"][0]["steered_tokens"] == answer["usage"]["prompt_tokens"]
    assert proven(running.answer(steering="cheerful")) == [("cheerful", "all")]


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_a_request_can_have_it_steer_on(start: Start, positions: str) -> None:
    steering = {"profile": "cheerful", "positions": positions}
    answer = start().answer(response_format=SHAPED, steering=steering)
    assert proven(answer) == [("cheerful", positions)]


def test_a_profile_that_would_then_steer_nothing_is_refused(server: Running) -> None:
    error = server.refusal(response_format=SHAPED, steering="concise")
    assert (error["code"], error["param"]) == ("invalid_steering", "steering")
    assert '"positions": "generated"' in error["message"]


def test_a_list_of_strengths_makes_a_choice_of_each(start: Start) -> None:
    answer = start().answer(steering={"profile": "cheerful", "strength": [0, 0.5, 1]})
    said = [choice["message"]["content"] for choice in answer["choices"]]
    assert said == ["cheerful*0: hello", "cheerful*0.5: hello", "cheerful*1: hello"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    told = [(term["choice"], term["strength"], term["steered_tokens"] > 0) for term in answer["steering"]]
    assert told == [(0, 0.0, False), (1, 0.5, True), (2, 1.0, True)]
    alone = start().answer(steering={"profile": "cheerful", "strength": 0.5})
    assert answer["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert "choice" not in alone["steering"][0]


def test_one_term_of_several_can_be_swept(start: Start) -> None:
    running = start()
    steering = [{"profile": "concise", "strength": 0.5}, {"profile": "cheerful@1", "strength": [1, -1]}]
    answer = running.answer(steering=steering)
    said = [choice["message"]["content"] for choice in answer["choices"]]
    assert said == ["concise*0.5+cheerful*1: hello", "concise*0.5+cheerful*-1: hello"]
    assert len({job.siblings for job in running.engine.jobs}) == 1


def test_a_streamed_sweep_proves_each_choice(start: Start) -> None:
    chunks = start().chunks(steering={"profile": "cheerful", "strength": [0.5, 1]})
    proofs = [term for chunk in chunks for term in chunk.get("steering", [])]
    assert sorted((term["choice"], term["strength"]) for term in proofs) == [(0, 0.5), (1, 1.0)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"steering": {"profile": "cheerful", "strength": []}}, "steering.strength"),
        ({"steering": {"profile": "cheerful", "strength": [0.1] * 9}}, "steering.strength"),
        ({"steering": {"profile": "cheerful", "strength": ["1"]}}, "steering.strength[0]"),
        ({"steering": {"profile": "cheerful", "strength": True}}, "steering.strength"),
        ({"steering": {"profile": "cheerful", "strength": [1, 99]}}, "steering.strength"),
        ({"steering": {"profile": "cheerful", "strength": [1, 2]}, "n": 2}, "n"),
        (
            {"steering": [{"profile": "cheerful", "strength": [1]}, {"profile": "concise", "strength": [1]}]},
            "steering",
        ),
        ({"steering": {"profile": "cheerful", "strength": [0, 1]}, "model": "scripted:cheerful"}, "model"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(server: Running, fields: Any, param: str) -> None:
    error = server.refusal(**fields)
    assert (error["status"], error["param"]) == (400, param)


def test_an_answer_can_go_on_from_the_last_message(start: Start) -> None:
    running = start()
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    running.answer(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert prompt_text(running.engine.jobs[-1]).endswith("One, two,")
    running.answer(messages=messages)
    assert prompt_text(running.engine.jobs[-1]).endswith("assistant\n")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "add_generation_prompt"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "messages"),
    ],
)
def test_going_on_from_nothing_is_refused(server: Running, fields: Any, param: str) -> None:
    assert server.refusal(**fields)["param"] == param


@pytest.mark.parametrize("last", [True, False])
def test_usage_can_come_with_every_chunk_and_in_one_of_its_own(start: Start, last: bool) -> None:
    options = {"continuous_usage_stats": True, "include_usage": last}
    chunks = start().chunks(stream_options=options)
    assert all(chunk["usage"] is not None for chunk in chunks)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert [not chunk["choices"] for chunk in chunks] == [False] * (len(chunks) - 1) + [last]
