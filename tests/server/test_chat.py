"""Chat completions: OpenAI's shapes, and that every option reaches the engine."""

from typing import Any

import pytest

from server.engine.protocol import SamplingParams
from server.engine.scripted import ScriptedEngine
from tests.server.running import HELLO, Running, text_of


def test_an_answer_has_openais_shape(server: Running) -> None:
    answer = server.answer()
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "scripted",
        "system_fingerprint": "fp_5c5c5c5c5c5c",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 24, "completion_tokens": 6, "total_tokens": 30},
    }


def test_a_stream_opens_with_the_role_and_ends_with_the_reason(server: Running) -> None:
    first, *middle, last = server.chunks()
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in middle)
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    for chunk in (first, *middle, last):
        assert (chunk["id"], chunk["created"]) == (first["id"], first["created"])
        assert chunk["object"] == "chat.completion.chunk"
        assert "usage" not in chunk


def test_usage_comes_last_when_asked_for(server: Running) -> None:
    *before, last = server.chunks(stream_options={"include_usage": True}, n=2)
    assert all(chunk["usage"] is None for chunk in before)
    assert last["choices"] == []
    assert last["usage"] == server.answer(n=2)["usage"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"messages": [{"role": "user", "content": "naïve 🤗 日本語"}]},
        {"max_tokens": 3},
        {"messages": [{"role": "user", "content": "日本語"}], "max_tokens": 4},
        {"stop": "ll"},
        {"stop": ["lo", "x"]},
        {"n": 3, "logprobs": True, "top_logprobs": 2},
        {"ignore_eos": True, "max_tokens": 12},
    ],
)
def test_streamed_and_whole_answers_are_the_same(server: Running, fields: Any) -> None:
    answer = server.answer(**fields)
    chunks = server.chunks(**fields)
    for choice in answer["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert text_of(chunks, choice["index"]) == choice["message"]["content"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        told = [token for part in parts if part["logprobs"] for token in part["logprobs"]["content"]]
        assert told == (choice["logprobs"]["content"] if choice["logprobs"] else [])


def test_a_stop_string_is_not_in_the_answer(server: Running) -> None:
    [choice] = server.answer(stop="ll")["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("he", "stop")


def test_a_limit_ends_an_answer_with_length(server: Running) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        answer = server.answer(**{field: 2})
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 2
    assert server.answer(max_tokens=2, max_completion_tokens=2)["usage"]["completion_tokens"] == 2


def test_logprobs_name_each_token_and_its_rivals(server: Running) -> None:
    [first, _] = server.answer(logprobs=True, top_logprobs=2, max_tokens=2)["choices"][0]["logprobs"][
        "content"
    ]
    rivals = first.pop("top_logprobs")
    assert first == {"token": "h", "logprob": -0.5, "bytes": [104]}
    assert [rival["token"] for rival in rivals] == ["h", "i"]
    assert server.answer(logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert server.answer(logprobs=False)["choices"][0]["logprobs"] is None


def test_several_choices_have_their_own_seeds_and_count_the_prompt_once(server: Running) -> None:
    answer = server.answer(n=3, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 24, "completion_tokens": 18, "total_tokens": 42}
    jobs = server.engine.jobs[-3:]
    seeds = [job.sampling.seed for job in jobs]
    assert (seeds[0], len(set(seeds))) == (5, 3)
    server.answer(n=2, seed=5)
    assert [job.sampling.seed for job in server.engine.jobs[-2:]] == seeds[:2]
    assert len({job.id for job in jobs}) == 3


def test_every_sampling_option_reaches_the_engine(server: Running) -> None:
    server.answer(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias={"5": -100, "257": 1.5},
        seed=-3,
        stop=["a", "b"],
        stop_token_ids=[7, 7, 8],
        ignore_eos=True,
        logprobs=True,
        top_logprobs=3,
    )
    assert server.engine.jobs[-1].sampling == SamplingParams(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        logit_bias={5: -100.0, 257: 1.5},
        seed=-3,
        stop=("a", "b"),
        stop_token_ids=(7, 8),
        ignore_eos=True,
        logprobs=3,
    )


def test_null_is_the_same_as_absent(server: Running) -> None:
    server.answer()
    bare = server.engine.jobs[-1]
    names = set(ChatFields) - set(HELLO)
    server.answer(**dict.fromkeys(names))
    assert server.engine.jobs[-1].sampling == bare.sampling
    assert bare.sampling == SamplingParams(max_tokens=4096 - 24)


ChatFields = [
    *("messages", "model", "audio", "frequency_penalty", "function_call", "functions", "logit_bias"),
    *("logprobs", "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "n"),
    *("parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key", "prompt_cache_retention"),
    *("reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier", "steering", "stop"),
    *("store", "stream", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p"),
    *("user", "verbosity", "web_search_options", "top_k", "min_p", "repetition_penalty", "stop_token_ids"),
    *("ignore_eos", "prompt_cache_options"),
]


def test_fields_without_effect_are_accepted(server: Running) -> None:
    server.answer(
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        safety_identifier="s",
        prompt_cache_key="k",
        parallel_tool_calls=False,
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        modalities=["text"],
    )


def test_messages_are_rendered_by_the_models_template(server: Running) -> None:
    server.answer(
        messages=[
            {"role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "name": "eve",
            },
            {"role": "assistant", "content": "c", "refusal": None, "annotations": [], "tool_calls": None},
            {"role": "user", "content": ""},
        ]
    )
    prompt = server.engine.card.tokenizer.decode(server.engine.jobs[-1].prompt)
    assert prompt == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_can_be_sent_back_as_a_message(server: Running) -> None:
    message = server.answer()["choices"][0]["message"]
    server.answer(messages=[*HELLO["messages"], message, {"role": "user", "content": "and?"}])


def test_top_p_zero_keeps_the_likeliest_token(server: Running) -> None:
    server.answer(top_p=0)
    assert 0 < server.engine.jobs[-1].sampling.top_p < 1e-5


def test_a_served_name_stands_beside_the_models_id(start: Any) -> None:
    server = start(ScriptedEngine(), served_model_name="alias:7b")
    assert server.answer(model="alias:7b")["model"] == "alias:7b"
    assert server.answer(model="scripted")["model"] == "scripted"
    assert server.answer(model="alias:7b:cheerful")["steering"][0]["profile"] == "cheerful"
    assert server.refusal(model="alias")["code"] == "model_not_found"


def test_what_asks_for_the_answers_that_there_are_is_accepted(server: Running) -> None:
    plain = server.answer()["choices"]
    assert server.answer(reasoning_effort="none", verbosity="medium", service_tier="flex")["choices"] == plain
