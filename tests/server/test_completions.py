"""Legacy completions: OpenAI's shapes, prompts of every kind, echoes, log-probabilities and steering."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion as OpenAICompletion
from pydantic import TypeAdapter
from tokenizers.processors import TemplateProcessing

from server.completion_replies import Completion, row, spelled
from server.engine.batcher import BatchLimits
from server.engine.byte_tokenizer import byte_tokenizer
from server.engine.protocol import PositionLogprobs, SamplingParams, TokenLogprob
from server.engine.scripted import ScriptedEngine
from server.engine.transformers_engine import TransformersEngine
from server.prompt_tokens import begins_of
from steering.picturing import pictured_of
from tests.server.profiles import small_store
from tests.server.running import Running, error_of, events_of, running, until
from tests.server.test_operations import references
from tests.tiny_models import load_tiny, tiny_tokenizer
from tests.tiny_vlms import load_tiny_vlm

PATH = "/v1/completions"
HELLO = {"model": "scripted", "prompt": "hello"}
ANSWER = TypeAdapter(Completion)
ENDLESS = {"ignore_eos": True, "max_tokens": 4000}


def post(server: Running, headers: Any = None, **fields: Any) -> httpx.Response:
    return server.client.post(PATH, json={**HELLO, **fields}, headers=headers)


def complete(server: Running, **fields: Any) -> dict[str, Any]:
    """Return the answer, which has the shape that /openapi.json documents."""
    response = post(server, **fields)
    assert response.status_code == 200, response.text
    ANSWER.validate_json(response.content, strict=True)
    return response.json()


def parts_of(server: Running, **fields: Any) -> list[dict[str, Any]]:
    """Return the parts of a stream that ended well."""
    response = post(server, stream=True, **fields)
    assert response.status_code == 200, response.text
    *bodies, done = events_of(response.text)
    assert done == "[DONE]"
    for body in bodies:
        ANSWER.validate_json(body, strict=True)
    return [json.loads(body) for body in bodies]


def refusal(server: Running, **fields: Any) -> dict[str, Any]:
    response = post(server, **fields)
    assert response.status_code >= 400, response.text
    return error_of(response)


def texts_of(answer: dict[str, Any]) -> list[str]:
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    return [choice["text"] for choice in answer["choices"]]


def with_beginning(server_tokenizer: Any) -> Any:
    """Return the tokenizer as one that puts START before text and END behind it."""
    server_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 256), ("<|im_end|>", 257)]
    )
    return server_tokenizer


def beginning_engine() -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.card = replace(engine.card, tokenizer=with_beginning(byte_tokenizer()))
    return engine


def test_an_answer_has_openais_shape(server: Running) -> None:
    answer = complete(server)
    assert answer.pop("id").startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "text_completion",
        "model": "scripted",
        "system_fingerprint": "fp_5c5c5c5c5c5c",
        "choices": [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
    }


def test_sixteen_tokens_are_generated_unless_more_are_asked_for(start: Any) -> None:
    server = start(ScriptedEngine(context_length=30))
    assert complete(server, ignore_eos=True)["usage"]["completion_tokens"] == 16
    assert complete(server, ignore_eos=True, max_tokens=20)["usage"]["completion_tokens"] == 20
    assert complete(server, prompt="x" * 28, ignore_eos=True)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("hé", [[104, 195, 169]]),
        (["a", "bc"], [[97], [98, 99]]),
        ([104, 256, 105], [[104, 256, 105]]),
        ([[104], [105, 106]], [[104], [105, 106]]),
    ],
)
def test_every_kind_of_prompt_is_read(server: Running, prompt: Any, read: Any) -> None:
    answer = complete(server, prompt=prompt)
    assert [list(job.prompt) for job in server.engine.jobs[-len(read) :]] == read
    assert answer["usage"]["prompt_tokens"] == sum(map(len, read))


def test_a_templates_words_are_not_put_around_a_prompt(server: Running) -> None:
    complete(server, prompt="<|im_start|>user\nhi")
    assert server.engine.jobs[-1].prompt == (256, *b"user\nhi")


def test_choices_are_ordered_prompt_by_prompt_and_prompts_count_once(server: Running) -> None:
    answer = complete(server, prompt=["a", "bc"], n=3)
    assert texts_of(answer) == ["a", "a", "a", "bc", "bc", "bc"]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 15, "total_tokens": 18}
    jobs = server.engine.jobs[-6:]
    assert len({job.id for job in jobs}) == 6
    first, second = jobs[0].siblings, jobs[3].siblings
    assert [job.siblings for job in jobs] == [first] * 3 + [second] * 3
    assert None not in (first, second)
    assert first != second


def test_a_seed_means_the_same_for_a_prompt_whatever_stands_beside_it(server: Running) -> None:
    complete(server, prompt="b", n=2, seed=7)
    alone = [job.sampling.seed for job in server.engine.jobs[-2:]]
    complete(server, prompt=["a", "b"], n=2, seed=7)
    assert [job.sampling.seed for job in server.engine.jobs[-4:]] == alone * 2
    assert len(set(alone)) == 2


STREAMED: list[dict[str, Any]] = [
    {},
    {"prompt": "naïve 🤗 日本語", "max_tokens": 40},
    {"prompt": "日本語", "max_tokens": 4, "logprobs": 1},
    {"prompt": ["a", "bc"], "n": 2, "logprobs": 2, "echo": True},
    {"prompt": [[104, 230], [257]], "echo": True, "logprobs": 5},
    {"echo": True, "max_tokens": 0, "logprobs": 1},
    {"echo": True, "max_tokens": 0},
    {"echo": True, "prompt": "日"},
    {"stop": "ll", "logprobs": 0},
    {"stop": ["lo", "x"], "echo": True, "logprobs": 1},
    {"ignore_eos": True, "max_tokens": 12},
    {"steering": "cheerful", "prompt": ["a", "b"]},
]


@pytest.mark.parametrize("fields", STREAMED)
def test_streamed_and_whole_answers_are_the_same(server: Running, fields: Any) -> None:
    answer, parts = complete(server, **fields), parts_of(server, **fields)
    assert len({(part["id"], part["created"], part["object"]) for part in parts}) == 1
    assert all("usage" not in part for part in parts)
    for choice in answer["choices"]:
        own = [each for part in parts for each in part["choices"] if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        told = [each["logprobs"] for each in own if each["logprobs"]]
        joined = {key: [item for each in told for item in each[key]] for key in choice["logprobs"] or ()}
        assert joined == (choice["logprobs"] or {})


def test_usage_is_streamed_as_asked_for(server: Running) -> None:
    *before, last = parts_of(server, n=2, stream_options={"include_usage": True})
    assert all(part["usage"] is None for part in before)
    assert last["choices"] == []
    assert last["usage"] == complete(server, n=2)["usage"]
    parts = parts_of(server, stream_options={"continuous_usage_stats": True})
    assert [part["usage"]["completion_tokens"] for part in parts] == [1, 2, 3, 4, 5, 6]
    parts = parts_of(server, stream_options={"continuous_usage_stats": True, "include_usage": True})
    assert [part["usage"]["completion_tokens"] for part in parts] == [1, 2, 3, 4, 5, 6, 6]
    assert parts_of(server, stream_options={"include_usage": False}) != []


def test_an_echo_begins_with_the_prompt_as_it_was_sent(server: Running) -> None:
    assert texts_of(complete(server, prompt=["hé", "<|im_start|>x"], echo=True, max_tokens=1)) == [
        "héh",
        "<|im_start|>xx",
    ]
    assert texts_of(complete(server, prompt=[257, 104], echo=True, max_tokens=1)) == ["<|im_end|>hh"]
    assert texts_of(complete(server, echo=False, max_tokens=1)) == ["h"]


def test_an_echo_may_be_all_that_is_asked_for(server: Running) -> None:
    answer = complete(server, echo=True, max_tokens=0)
    assert texts_of(answer) == ["hello"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}


def test_a_prompt_to_be_scored_may_fill_the_context(start: Any) -> None:
    server = start(ScriptedEngine(context_length=20))
    assert complete(server, prompt="x" * 20, echo=True, logprobs=1, max_tokens=0)
    error = refusal(server, prompt="x" * 21, echo=True, logprobs=1, max_tokens=0)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_logprobs_are_openais_four_lists(server: Running) -> None:
    told = complete(server, logprobs=2, max_tokens=2)["choices"][0]["logprobs"]
    assert told == {
        "tokens": ["h", "e"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"h": -0.5, "i": -1.5}, {"e": -0.5, "f": -1.5}],
        "text_offset": [0, 1],
    }
    assert complete(server, logprobs=0, max_tokens=1)["choices"][0]["logprobs"]["top_logprobs"] == [
        {"h": -0.5}
    ]


def test_an_echo_tells_the_prompts_logprobs_first(server: Running) -> None:
    told = complete(server, prompt="hi", echo=True, logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    assert told == {
        "tokens": ["h", "i", "h"],
        "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"i": -0.5}, {"h": -0.5}],
        "text_offset": [0, 1, 2],
    }
    without = complete(server, prompt="hi", logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    assert without["tokens"] == ["h"]


def test_the_engine_scores_a_prompt_only_where_that_is_told(server: Running) -> None:
    for fields, wanted in (
        ({"echo": True, "logprobs": 3}, 3),
        ({"echo": True}, None),
        ({"logprobs": 3}, None),
        ({"echo": True, "max_tokens": 0}, 0),
    ):
        complete(server, **fields)
        assert server.engine.jobs[-1].sampling.prompt_logprobs == wanted


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_harness_reads_an_options_loglikelihood(server: Running, max_tokens: int) -> None:
    """As lm-eval's `local-completions` asks and reads (its parse_logprobs), which always drops one token."""
    contexts, options = [list(b"2+2="), list(b"sky: ")], [list(b"4"), list(b"blue")]
    prompts = [context + option for context, option in zip(contexts, options, strict=True)]
    fields = {"temperature": 0, "max_tokens": max_tokens, "logprobs": 1, "seed": 1234, "echo": True}
    answer = complete(server, prompt=prompts, **fields)
    for choice, context, option in zip(answer["choices"], contexts, options, strict=True):
        told, end = choice["logprobs"], len(context) + len(option)
        scores = told["token_logprobs"][len(context) : end]
        assert len(told["token_logprobs"]) == end + max_tokens
        assert sum(scores) == -0.5 * len(option)
        assert scores == [max(top.values()) for top in told["top_logprobs"][len(context) : end]]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=12), st.booleans(), st.integers(1, 30))
def test_offsets_say_where_tokens_begin_in_the_text(
    server: Running, prompt: str, echo: bool, tokens: int
) -> None:
    [choice] = complete(server, prompt=prompt, echo=echo, max_tokens=tokens, logprobs=0)["choices"]
    told = choice["logprobs"]
    assert told["text_offset"] == sorted(told["text_offset"])
    for token, begin in zip(told["tokens"], told["text_offset"], strict=True):
        if not token.startswith("bytes:") and token != "<|im_end|>":
            assert choice["text"].startswith(token, begin)


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("thin aé🤗日\n"), min_size=1, max_size=20))
def test_tokens_of_several_characters_or_of_parts_begin_where_they_are(text: str) -> None:
    tokenizer = tiny_tokenizer()
    read = tokenizer(text, return_offsets_mapping=True)
    whole = {
        place for place, token in enumerate(read["input_ids"]) if "\ufffd" not in tokenizer.decode(token)
    }
    begins = list(begins_of(read["input_ids"], tokenizer))
    assert begins == sorted(begins)
    assert all(begins[place] == read["offset_mapping"][place][0] for place in whole)


def test_a_part_of_a_character_is_spelled_as_openai_spells_it(server: Running) -> None:
    told = complete(server, prompt="日", max_tokens=3, logprobs=0)["choices"][0]["logprobs"]
    assert told["tokens"] == ["bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5"]
    assert told["text_offset"] == [0, 0, 0]
    assert spelled("\ufffd", "\ufffd".encode()) == "\ufffd"


def test_a_token_spelled_as_a_likelier_one_does_not_hide_it() -> None:
    likely = TokenLogprob("a", b"a", -0.1)
    told = row(PositionLogprobs(TokenLogprob("a", b"a", float("-inf")), (likely,)), 3)
    assert told == ("a", -9999.0, {"a": -0.1}, 3)


def test_strings_are_read_with_the_tokens_that_the_tokenizer_puts_around_them(start: Any) -> None:
    server = start(beginning_engine())
    answer = complete(server, prompt="hi", echo=True, logprobs=0, max_tokens=1)
    assert server.engine.jobs[-1].prompt == (256, 104, 105, 257)
    [choice] = answer["choices"]
    assert choice["text"].startswith("hi")
    assert choice["logprobs"]["tokens"][:4] == ["<|im_start|>", "h", "i", "<|im_end|>"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2, 2]
    complete(server, prompt="hi", add_special_tokens=False)
    assert server.engine.jobs[-1].prompt == (104, 105)
    complete(server, prompt=[104, 105])
    assert server.engine.jobs[-1].prompt == (104, 105)
    complete(server, prompt="", echo=True, logprobs=0)
    assert server.engine.jobs[-1].prompt == (256, 257)


def test_every_sampling_option_reaches_the_engine(server: Running) -> None:
    options = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": -1.0,
        "frequency_penalty": 2.0,
        "seed": -3,
        "ignore_eos": True,
        "logprobs": 3,
    }
    lists = {"logit_bias": {"5": -100, "257": 1.5}, "stop": ["a", "b"], "stop_token_ids": [7, 7, 8]}
    complete(server, **options, **lists, user="u")
    assert server.engine.jobs[-1].sampling == SamplingParams(
        **options, logit_bias={5: -100.0, 257: 1.5}, stop=("a", "b"), stop_token_ids=(7, 8)
    )


FIELDS = [
    *(
        "best_of",
        "echo",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "n",
        "presence_penalty",
    ),
    *("seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user"),
    *("steering", "top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos"),
    "add_special_tokens",
]


def test_null_is_the_same_as_absent(server: Running) -> None:
    complete(server, **dict.fromkeys(FIELDS))
    assert server.engine.jobs[-1].sampling == SamplingParams(max_tokens=16)


@pytest.mark.parametrize(("n", "best_of"), [(None, 1), (1, 1), (3, 3), (3, 1)])
def test_best_of_is_accepted_where_it_asks_for_nothing(server: Running, n: Any, best_of: int) -> None:
    assert len(complete(server, n=n, best_of=best_of)["choices"]) == (n or 1)


def test_every_way_to_steer_works_and_the_answer_proves_it(server: Running) -> None:
    wanted = complete(server, steering={"profile": "cheerful", "strength": 0.5}, max_tokens=3)
    [proof] = wanted["steering"]
    assert (proof["profile"], proof["version"], proof["strength"]) == ("cheerful", 2, 0.5)
    assert proof["steered_tokens"] == 5 + 2
    assert texts_of(wanted) == ["che"]
    for fields in ({"model": "scripted:cheerful*0.5"}, {"headers": {"X-Steering-Profile": "cheerful*0.5"}}):
        assert post(server, max_tokens=3, **fields).json()["steering"] == [proof]
    assert "steering" not in complete(server)
    *_, last = parts_of(server, steering="cheerful*0.5", max_tokens=3)
    assert last["steering"] == [proof]


def test_the_proof_counts_the_tokens_of_all_choices(server: Running) -> None:
    [proof] = complete(server, prompt=["a", "bcd"], n=2, steering="cheerful", max_tokens=1)["steering"]
    assert proof["steered_tokens"] == 2 * (1 + 3)


def test_a_sweep_of_strengths_is_made_for_each_prompt(server: Running) -> None:
    steering = {"profile": "cheerful", "strength": [0.5, -1]}
    answer = complete(server, prompt=["a", "b"], steering=steering)
    assert texts_of(answer) == ["cheerful*0.5: a", "cheerful*-1: a", "cheerful*0.5: b", "cheerful*-1: b"]
    assert [(each["choice"], each["strength"]) for each in answer["steering"]] == [
        (0, 0.5),
        (1, -1.0),
        (2, 0.5),
        (3, -1.0),
    ]
    assert answer["usage"]["prompt_tokens"] == 2
    proofs = [
        each
        for part in parts_of(server, prompt=["a", "b"], steering=steering)
        for each in part.get("steering", ())
    ]
    assert sorted(proofs, key=lambda each: each["choice"]) == answer["steering"]
    assert refusal(server, steering=steering, n=2)["param"] == "n"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [None]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a", 3]}, "prompt[1]"),
        ({"prompt": [3, "a"]}, "prompt[1]"),
        ({"prompt": [[3], 4]}, "prompt[1]"),
        ({"prompt": [[3, "a"]]}, "prompt[0][1]"),
        ({"prompt": [[3, [4]]]}, "prompt[0][1]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [258]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [[1], [2, 258]]}, "prompt[1]"),
        ({"add_special_tokens": 1}, "add_special_tokens"),
        ({"echo": "true"}, "echo"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": False, "logprobs": 1}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"temperature": 2.1}, "temperature"),
        ({"logit_bias": {"258": 1}}, "logit_bias.258"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"steering": {"profile": "cheerful", "strength": 5}}, "steering.strength"),
        ({"steering": {"profile": "cheerful", "strenght": 1}}, "steering.strenght"),
    ],
)
def test_a_wrong_value_is_refused_with_the_fields_path(server: Running, fields: Any, param: str) -> None:
    for stream in (
        ({}, {"stream": True}) if "stream" not in fields and "stream_options" not in fields else ({},)
    ):
        error = refusal(server, **fields, **stream)
        assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert len(error["message"]) < 300


def test_a_suffix_and_unknown_fields_are_refused(server: Running) -> None:
    error = refusal(server, suffix="the end")
    assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", "suffix")
    error = refusal(server, max_token=3)
    assert (error["code"], error["param"]) == ("unknown_parameter", "max_token")
    assert "did you mean 'max_tokens'?" in error["message"]
    assert refusal(server, messages=[])["param"] == "messages"
    missing = error_of(server.client.post(PATH, json={"model": "scripted"}))
    assert (missing["code"], missing["param"]) == ("missing_required_parameter", "prompt")
    assert refusal(server, model="gpt-4")["code"] == "model_not_found"
    assert refusal(server, steering="nobody")["code"] == "profile_not_found"


def test_a_prompt_beyond_the_context_is_refused_with_its_place(start: Any) -> None:
    server = start(ScriptedEngine(context_length=100))
    for prompt, param in (
        ("a" * 100, "prompt"),
        (["a", "a" * 100], "prompt[1]"),
        ([97] * 100, "prompt"),
        ([[97], [97] * 2000], "prompt[1]"),
        (["a", "b", "a" * 1_000_000], "prompt[2]"),
    ):
        error = refusal(server, prompt=prompt)
        assert (error["status"], error["code"], error["param"]) == (400, "context_length_exceeded", param)
    error = refusal(server, prompt=["a", "a" * 90], max_tokens=11)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    for number in ("90", "11", "101", "100", "10"):
        assert number in error["message"]


def test_more_choices_than_can_run_at_once_are_refused_for_good(start: Any) -> None:
    server = start(max_batch_size=2, max_waiting=2)
    assert len(complete(server, prompt=["a", "b"], n=2)["choices"]) == 4
    error = refusal(server, prompt=["a", "b", "c"], n=2)
    assert (error["status"], error["param"]) == (400, "prompt")
    for number in ("3 prompts", "6 choices", "4 at most"):
        assert number in error["message"]
    assert refusal(server, n=5)["param"] == "n"
    sweep = {"profile": "cheerful", "strength": [0.1, 0.2, 0.3]}
    assert refusal(server, prompt=["a", "b"], steering=sweep)["param"] == "prompt"


@pytest.mark.parametrize(
    "prompt",
    [
        ["a"] * 1_000_000,
        [[1]] * 600_000,
        [1] * 1_500_000,
        [[1] * 1_500_000],
        [-1] * 1_000_000,
        [[]] * 900_000,
    ],
    ids=["strings", "lists", "tokens", "one list", "wrong tokens", "empty lists"],
)
def test_huge_lists_are_refused_soon(server: Running, prompt: Any) -> None:
    begin = time.perf_counter()
    error = refusal(server, prompt=prompt)
    assert error["status"] == 400
    assert "arrays and objects" in error["message"] or error["param"].partition("[")[0] == "prompt"
    assert time.perf_counter() - begin < 10


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
prompts = st.lists(st.integers(0, 257), max_size=4) | st.lists(st.text(max_size=4), max_size=3) | json_values


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts, st.dictionaries(st.sampled_from(FIELDS), json_values | st.just(True), max_size=3))
def test_no_body_makes_the_server_fail(server: Running, prompt: Any, fields: dict[str, Any]) -> None:
    content = json.dumps({**HELLO, "prompt": prompt, **fields})
    response = server.client.post(PATH, content=content)
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        error_of(response)
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert "error" not in response.text
        assert events_of(response.text)[-1] == "[DONE]"


def test_bodies_that_are_no_json_or_of_another_type_are_refused(server: Running) -> None:
    assert error_of(server.client.post(PATH, content=b"{"))["code"] == "invalid_json"
    typed = {"content-type": "text/plain"}
    assert error_of(server.client.post(PATH, content=json.dumps(HELLO), headers=typed))["status"] == 415
    assert error_of(server.client.post(f"{PATH}?steering=cheerful", json=HELLO))["status"] == 400


def test_an_error_in_a_stream_is_an_event_before_done(start: Any) -> None:
    server = start(ScriptedEngine(fail_on="ll"))
    *parts, error, done = events_of(post(server, stream=True, prompt=["a", "hello"]).text)
    assert done == "[DONE]"
    assert json.loads(error)["error"]["code"] == "generation_failed"
    assert all("error" not in json.loads(part) for part in parts)
    assert refusal(server)["code"] == "generation_failed"
    assert server.engine.health().running == 0


def test_a_client_that_leaves_cancels_every_prompts_jobs(start: Any) -> None:
    server = start(ScriptedEngine(delay=0.01))
    body = {**HELLO, **ENDLESS, "prompt": ["a", "b"], "n": 2}
    with server.client.stream("POST", PATH, json={**body, "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.engine.health().running == 4
    until(lambda: server.engine.health().running == 0)
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(PATH, json=body, timeout=0.3)
    until(lambda: len(server.engine.cancelled) == 8)


def test_a_full_engine_refuses_all_prompts_of_a_request(start: Any) -> None:
    server = start(ScriptedEngine(capacity=2))
    error = refusal(server, prompt=["a", "b", "c"])
    assert (error["status"], error["code"]) == (503, "engine_overloaded")
    assert server.engine.health().running == 0
    assert len(complete(server, prompt=["a", "b"])["choices"]) == 2


def test_the_schema_tells_the_body_and_the_answers(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    operation = schema["paths"][PATH]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"model", "prompt", *FIELDS}
    assert set(body["required"]) == {"model", "prompt"}
    assert set(operation["responses"]) == {"200", "4XX", "5XX"}
    answers = operation["responses"]["200"]["content"]
    assert set(answers) == {"application/json", "text/event-stream"}
    assert set(answers["application/json"]["schema"]["properties"]) == set(Completion.__annotations__)
    for reference in references(operation):
        target: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/")]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose engine's card is that of a model that takes images."""
    loaded = load_tiny_vlm("llava", tmp_path_factory.mktemp("llava"))
    engine = ScriptedEngine(lambda job: "seen")
    engine.card = replace(
        engine.card,
        tokenizer=loaded.tokenizer,
        vocabulary_size=loaded.vocabulary_size,
        pictured=pictured_of(loaded),
    )
    with running(small_store(), engine) as started:
        yield started


def test_a_model_that_takes_images_takes_prompts_of_text(seeing: Running) -> None:
    assert texts_of(complete(seeing, prompt=["what is", "this"])) == ["seen", "seen"]
    assert all(job.images is None for job in seeing.engine.jobs)


def test_image_tokens_are_not_steered_where_there_is_no_image(seeing: Running) -> None:
    for strength in (1, [0, 1]):
        error = refusal(seeing, steering={"profile": "cheerful", "tokens": "image", "strength": strength})
        assert (error["status"], error["code"], error["param"]) == (400, "invalid_steering", "steering")


def test_what_stands_for_an_image_is_refused_in_a_prompt(seeing: Running) -> None:
    pictured = seeing.engine.card.pictured
    for prompt, param in (
        (f"see {pictured.placeholder}", "prompt"),
        (["a", f"see {pictured.placeholder}"], "prompt[1]"),
        ([pictured.image_token], "prompt"),
    ):
        error = refusal(seeing, prompt=prompt)
        assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", param)
        assert "/v1/chat/completions" in error["message"]


def test_loglikelihoods_are_the_models_own(tmp_path: Path) -> None:
    loaded = load_tiny("llama", tmp_path)
    engine = TransformersEngine(loaded, BatchLimits(4, 16, 4 * 128, 128), max_waiting=8)
    prompts = ["the thin tin", "a", "naïve 🤗 " * 6]
    fields = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 4, "temperature": 0, "n": 2}
    with running(small_store(), engine) as server:
        answer = complete(server, **fields, model=loaded.identity.id, ignore_eos=True)
    for index, choice in enumerate(answer["choices"]):
        ids = list(server.engine.card.tokenizer(prompts[index // 2])["input_ids"])
        told = choice["logprobs"]
        for place in range(1, len(told["tokens"])):
            with torch.no_grad():
                likely = loaded.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            ids += [] if place < len(ids) else [int(likely[-1].argmax())]
            wanted = float(likely[place - 1, ids[place]])
            assert told["token_logprobs"][place] == pytest.approx(wanted, abs=1e-4)
            assert max(told["top_logprobs"][place].values()) == pytest.approx(
                float(likely[place - 1].max()), abs=1e-4
            )
        assert choice["text"].startswith(prompts[index // 2])


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


def strictly(answer: OpenAICompletion) -> OpenAICompletion:
    """Validate the answer by the client's own types, which the client itself does not.

    They know no null where OpenAI sends one: for a part that is not the last, and an echo's first token.
    """
    told = answer.model_dump()
    for choice in told["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        logprobs = choice["logprobs"]
        if logprobs and logprobs["token_logprobs"][0] is None:
            logprobs["token_logprobs"][0], logprobs["top_logprobs"][0] = 0.0, {}
    return OpenAICompletion.model_validate(told, strict=True)


def test_the_openai_client_reads_whole_answers(client: openai.OpenAI) -> None:
    for fields in ({}, {"logprobs": 2}, {"logprobs": 1, "echo": True}, {"n": 2, "prompt": ["a", "b"]}):
        asked: Any = {"model": "scripted", "prompt": "hello", **fields}
        answer = client.completions.create(**asked)
        strictly(answer)
        assert answer.object == "text_completion"
        assert answer.usage is not None
    assert [choice.text for choice in answer.choices] == ["a", "a", "b", "b"]


def test_the_openai_client_reads_streams(client: openai.OpenAI) -> None:
    parts = list(
        client.completions.create(
            model="scripted",
            prompt="hello",
            logprobs=1,
            echo=True,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    for part in parts:
        strictly(part)
    assert "".join(choice.text for part in parts for choice in part.choices) == "hellohello"
    assert parts[-1].usage is not None
    assert parts[-1].usage.prompt_tokens == 5


def test_the_openai_client_steers_and_meets_its_exceptions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="scripted", prompt="hello", extra_body={"steering": {"profile": "cheerful"}}
    )
    assert answer.model_extra is not None
    assert answer.model_extra["steering"][0]["profile"] == "cheerful"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="scripted", prompt="hello", suffix="end")
    assert refused.value.param == "suffix"
