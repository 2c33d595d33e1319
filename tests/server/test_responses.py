"""Responses: OpenAI's object, input of every kind, and the same as chat does."""

import json
from typing import Any

import pytest

from server.response_replies import Response
from tests.server.asking_responses import (
    CALLED,
    CITY,
    CLOCK,
    LOGPROBS,
    PATH,
    PERSON,
    RESULT,
    SAMPLING,
    SHAPED,
    USER,
    WEATHER,
    Start,
    answer,
    nested,
    openais_fields,
    refusal,
    streamed,
    text_of,
)
from tests.server.running import Running
from tests.server.test_operations import references
from tests.server.test_tools import CALL, prompt_text, says


def test_a_response_has_openais_shape(server: Running) -> None:
    response = answer(server)
    assert response.pop("id").startswith("resp_")
    assert response["created_at"] <= response.pop("completed_at") <= response.pop("created_at") + 60
    [item] = response.pop("output")
    assert item.pop("id").startswith("msg_")
    part = {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}
    assert item == {"type": "message", "status": "completed", "role": "assistant", "content": [part]}
    assert response == {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "scripted",
        "usage": {
            "input_tokens": 24,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 30,
        },
        "background": False,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }


def test_a_response_repeats_what_was_asked(start: Start) -> None:
    asked = {
        "instructions": "Be kind.",
        "max_output_tokens": 50,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "temperature": 0.5,
        "tool_choice": {"type": "function", "name": "weather"},
        "tools": [{**WEATHER, "strict": True}],
        "top_p": 0.25,
        "truncation": "disabled",
        "user": "u",
    }
    response = answer(start(says("{}")), **asked)
    assert {name: response[name] for name in asked} == asked
    assert answer(start(says("{}")), text=SHAPED)["text"]["format"]["schema"] == PERSON


def test_nothing_is_stored_whatever_was_asked(server: Running) -> None:
    for store in (None, False, True):
        assert answer(server, store=store)["store"] is False


def test_an_answer_without_words_is_a_message_without_words(start: Start) -> None:
    [item] = answer(start(says("")))["output"]
    assert item["content"][0]["text"] == ""
    kinds = [event["type"] for event in streamed(start(says("")))]
    assert "response.output_text.delta" not in kinds
    assert "response.output_text.done" in kinds


def test_the_most_tokens_leave_a_response_incomplete(server: Running) -> None:
    response = answer(server, max_output_tokens=2)
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert response["completed_at"] is None
    assert response["output"][0]["status"] == "incomplete"
    assert (text_of(response), response["usage"]["output_tokens"]) == ("he", 2)
    assert streamed(server, max_output_tokens=2)[-1]["type"] == "response.incomplete"


def test_log_probabilities_stand_beside_the_text(server: Running) -> None:
    response = answer(server, include=LOGPROBS, top_logprobs=2, max_output_tokens=2)
    first, _ = response["output"][0]["content"][0]["logprobs"]
    assert [rival["token"] for rival in first.pop("top_logprobs")] == ["h", "i"]
    assert first == {"token": "h", "logprob": -0.5, "bytes": [104]}
    assert response["top_logprobs"] == 2
    told = answer(server, include=LOGPROBS, max_output_tokens=1)["output"][0]["content"][0]["logprobs"]
    assert [token["top_logprobs"] for token in told] == [[]]
    assert refusal(server, top_logprobs=2)["param"] == "top_logprobs"


def test_a_call_is_an_item_of_its_own(start: Start) -> None:
    words, call = answer(start(says(f"Let me look.\n{CALL}")), tools=[WEATHER, CLOCK])["output"]
    assert words["content"][0]["text"] == "Let me look."
    assert call.pop("id").startswith("fc_")
    assert call.pop("call_id").startswith("call_")
    assert call == {
        "type": "function_call",
        "status": "completed",
        "name": "weather",
        "arguments": '{"city": "Oslo"}',
    }


def test_a_call_that_is_cut_off_is_incomplete(start: Start) -> None:
    chosen = {"type": "function", "name": "weather"}
    server = start(says('{"city": "Oslo"}'))
    response = answer(server, tools=[WEATHER], tool_choice=chosen, max_output_tokens=5)
    [call] = response["output"]
    assert (response["status"], call["status"], call["arguments"]) == ("incomplete", "incomplete", '{"cit')
    assert json.loads(server.engine.jobs[-1].sampling.grammar.schema) == CITY


def test_one_call_is_the_most_where_calls_may_not_be_parallel(start: Start) -> None:
    running = start(says(f"{CALL}{CALL}"))
    assert len(answer(running, tools=[WEATHER])["output"]) == 2
    response = answer(running, tools=[WEATHER], parallel_tool_calls=False)
    assert [item["type"] for item in response["output"]] == ["function_call"]
    assert running.engine.jobs[-1].sampling.stop == ("</tool_call>",)


def test_log_probabilities_are_those_of_words_alone(start: Start) -> None:
    plain = answer(start(), include=LOGPROBS)
    assert len(plain["output"][0]["content"][0]["logprobs"]) == plain["usage"]["output_tokens"]
    _, words = answer(start(says(f"{CALL} So.")), include=LOGPROBS, tools=[WEATHER])["output"]
    told = "".join(token["token"] for token in words["content"][0]["logprobs"])
    assert told.startswith(" So.")


def test_tools_and_choices_are_chats(start: Start) -> None:
    running = start(says("fine"))
    flat = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "parallel_tool_calls": False}
    answer(running, **flat)
    running.answer(**{**flat, "tools": [nested(WEATHER), nested(CLOCK)]})
    mine, chats = running.engine.jobs[-2:]
    assert mine.prompt == chats.prompt
    assert mine.sampling.grammar == chats.sampling.grammar
    answer(running, tools=[WEATHER], tool_choice="none")
    assert "weather" not in prompt_text(running.engine.jobs[-1])


def test_a_format_keeps_the_answer_to_its_shape(start: Start) -> None:
    running = start(says('{"name": "Ann"}'))
    assert json.loads(text_of(answer(running, text=SHAPED))) == {"name": "Ann"}
    assert json.loads(running.engine.jobs[-1].sampling.grammar.schema) == PERSON
    answer(running, text={"format": {"type": "json_object"}})
    assert json.loads(running.engine.jobs[-1].sampling.grammar.schema) == {"type": "object"}
    for text in (None, {}, {"format": {"type": "text"}}, {"format": None, "verbosity": None}):
        answer(running, text=text)
        assert running.engine.jobs[-1].sampling.grammar is None


def test_every_sampling_option_reaches_the_engine_as_chats(server: Running) -> None:
    answer(server, **SAMPLING, max_output_tokens=7, include=LOGPROBS, top_logprobs=3)
    server.answer(**SAMPLING, max_tokens=7, logprobs=True, top_logprobs=3)
    mine, chats = server.engine.jobs[-2:]
    assert (mine.sampling, mine.prompt) == (chats.sampling, chats.prompt)


INPUTS: list[tuple[Any, list[dict[str, Any]]]] = [
    ("hello", [{"role": "user", "content": "hello"}]),
    ([{"role": "user", "content": "a"}], [{"role": "user", "content": "a"}]),
    (
        [
            {"type": "message", "role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
            },
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "c", "annotations": [{"x": 1}]}],
            },
            {"role": "user", "content": ""},
        ],
        [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": ""},
        ],
    ),
    (
        [USER, CALLED, {**CALLED, "call_id": "c2", "name": "clock"}, RESULT, {**RESULT, "call_id": "c2"}],
        [
            USER,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": c, "type": "function", "function": {"name": n, "arguments": '{"city": "Oslo"}'}}
                    for c, n in (("c1", "weather"), ("c2", "clock"))
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "tool", "tool_call_id": "c2", "content": "rain"},
        ],
    ),
    (
        [
            {"role": "assistant", "content": "Let me"},
            CALLED,
            {"role": "assistant", "content": " look."},
            {**RESULT, "output": [{"type": "input_text", "text": "rain"}]},
        ],
        [
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
    ),
]


@pytest.mark.parametrize(("items", "messages"), INPUTS)
def test_input_becomes_the_prompt_that_chat_makes(server: Running, items: Any, messages: Any) -> None:
    answer(server, input=items)
    server.answer(messages=messages)
    mine, chats = server.engine.jobs[-2:]
    assert prompt_text(mine) == prompt_text(chats)


def test_instructions_are_a_system_message_before_the_input(server: Running) -> None:
    answer(server, instructions="Be brief.")
    server.answer(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}])
    assert server.engine.jobs[-1].prompt == server.engine.jobs[-2].prompt


def test_an_answer_can_be_sent_back_as_it_came(start: Start) -> None:
    server = start(says(f"Look: {CALL} there."))
    output = answer(server, input=[USER], tools=[WEATHER], include=LOGPROBS, top_logprobs=1)["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "message"]
    result = {**RESULT, "call_id": output[1]["call_id"]}
    answer(server, input=[USER, *output, result], tools=[WEATHER])
    told = prompt_text(server.engine.jobs[-1])
    message = server.answer(messages=[USER], tools=[nested(WEATHER)])["choices"][0]["message"]
    chat = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}
    server.answer(messages=[USER, message, chat], tools=[nested(WEATHER)])
    assert told == prompt_text(server.engine.jobs[-1])


def test_steering_is_said_as_in_chat_and_proven(server: Running) -> None:
    for fields, headers in (
        ({"steering": {"profile": "cheerful", "strength": 0.5}}, None),
        ({"steering": [{"profile": "cheerful", "strength": 0.5}]}, None),
        ({"steering": "cheerful*0.5"}, None),
        ({"model": "scripted:cheerful*0.5"}, None),
        ({}, {"X-Steering-Profile": "cheerful", "X-Steering-Strength": "0.5"}),
    ):
        response = answer(server, headers, **fields)
        assert text_of(response) == "cheerful*0.5: hello"
        assert response["steering"] == server.answer(steering="cheerful*0.5")["steering"]
    assert "steering" not in answer(server)
    assert streamed(server, steering="cheerful*0.5")[-1]["response"]["steering"] == response["steering"]


def test_steering_pauses_in_answers_of_a_given_shape(start: Start) -> None:
    [term] = answer(start(says("{}")), text=SHAPED, steering="cheerful")["steering"]
    assert term["positions"] == "prompt"


def test_a_response_is_one_answer_so_strengths_are_no_list(server: Running) -> None:
    for steering, param in (
        ({"profile": "cheerful", "strength": [0, 1]}, "steering.strength"),
        ({"profile": "cheerful", "strength": [1]}, "steering.strength"),
        ([{"profile": "concise"}, {"profile": "cheerful", "strength": [0, 1]}], "steering[1].strength"),
    ):
        error = refusal(server, steering=steering)
        assert (error["status"], error["code"], error["param"]) == (400, "invalid_steering", param)
        assert "one answer" in error["message"]


def test_what_asks_for_nothing_is_accepted(server: Running) -> None:
    answer(
        server,
        reasoning={"effort": "none", "summary": None},
        text={"verbosity": "medium"},
        background=False,
        truncation="disabled",
        service_tier="auto",
        stream_options=None,
        include=["reasoning.encrypted_content"],
        context_management=[],
        tools=[],
        tool_choice="none",
        stream=False,
    )
    bare = server.engine.jobs[-1].sampling
    names = {*openais_fields(), *SAMPLING} - {"model", "input"}
    answer(server, **dict.fromkeys(names))
    assert server.engine.jobs[-1].sampling == bare


def test_the_schema_tells_the_body_the_answer_and_the_events(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    operation = schema["paths"][PATH]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["required"]) == {"model", "input"}
    assert openais_fields() | {"steering", "chat_template_kwargs", *SAMPLING} == set(body["properties"])
    answers = operation["responses"]["200"]["content"]
    assert set(answers) == {"application/json", "text/event-stream"}
    assert set(answers["application/json"]["schema"]["properties"]) == set(Response.__annotations__)
    for reference in references(operation):
        target: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/")]
    for path, method in (("", "get"), ("", "delete"), ("/cancel", "post"), ("/input_items", "get")):
        told = schema["paths"][f"{PATH}/{{response_id}}{path}"][method]["responses"]
        assert "404" in told
        assert "200" not in told


def test_results_may_come_after_words_of_either_side(server: Running) -> None:
    aside = {"role": "assistant", "content": "look"}
    for items in ([USER, CALLED, aside, RESULT], [USER, CALLED, USER, RESULT], [USER, CALLED, RESULT, USER]):
        answer(server, input=items)
