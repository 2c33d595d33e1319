"""What an answer tells beside its tokens is the same on vLLM as on the default engine."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm")

from server.engine.grammar import Grammars, UnsupportedSchema
from server.engine.protocol import GenerationJob, PositionLogprobs, SamplingParams, TokenEvent
from steering.errors import ContextLengthExceeded
from tests.server.engine.on_vllm import OnVllm, on_vllm
from tests.server.engine.reference import greedy_job, random_vectors, term
from tests.server.engine.test_transformers_engine import answer, running

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
PROMPT = range(10, 40)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnVllm]:
    with on_vllm(tmp_path_factory.mktemp("model")) as served:
        yield served


def by_default(served: OnVllm, jobs: Sequence[GenerationJob]) -> list[list[TokenEvent]]:
    async def main() -> list[list[TokenEvent]]:
        async with running(served.loaded) as engine:
            return await asyncio.gather(*(answer(engine, job) for job in jobs))

    return asyncio.run(main())


def asked(served: OnVllm, name: str, **sampling: Any) -> GenerationJob:
    vectors = random_vectors("calm", served.loaded, [1, 2])
    job = greedy_job(name, PROMPT, sampling.pop("max_tokens", 12), term(vectors, 0.5))
    return replace(job, sampling=replace(job.sampling, **sampling))


def whole(events: Sequence[TokenEvent]) -> tuple[str, int, str | None, tuple[int, ...]]:
    last = events[-1]
    return "".join(each.text for each in events), last.completion_tokens, last.finish, last.steered_tokens


@pytest.mark.parametrize(
    "sampling",
    [
        {"stop": ("2", "9")},
        {"stop_token_ids": tuple(range(100))},
        {"ignore_eos": False, "max_tokens": 60},
        {"max_tokens": 1},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"logit_bias": {7: 100.0, 8: 99.5}, "frequency_penalty": 0.4},
        {"logit_bias": {7: 5.0, 8: 5.1}, "repetition_penalty": 1.7},
    ],
    ids=str,
)
def test_greedy_answers_end_and_count_alike(served: OnVllm, sampling: dict[str, Any]) -> None:
    job = asked(served, f"alike {sampling}", **sampling)
    assert whole(served.events([job])[0]) == whole(by_default(served, [job])[0])


def told(events: Sequence[TokenEvent], part: str) -> list[PositionLogprobs]:
    return [each for event in events for each in getattr(event, part)]


def assert_close(found: Sequence[PositionLogprobs], expected: Sequence[PositionLogprobs]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip((one.chosen, *one.top), (other.chosen, *other.top), strict=True):
            assert (mine.token, mine.bytes) == (theirs.token, theirs.bytes)
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("most", [0, 6])
def test_logprobs_of_answers_and_prompts_are_the_default_engines(served: OnVllm, most: int) -> None:
    job = asked(served, f"logprobs {most}", logprobs=3, prompt_logprobs=2, max_tokens=most)
    (found,), (expected,) = served.events([job]), by_default(served, [job])
    assert whole(found) == whole(expected)
    for part in ("logprobs", "prompt_logprobs"):
        assert_close(
            *([each for event in events for each in getattr(event, part)] for events in (found, expected))
        )
    assert len(told(found, "prompt_logprobs")) == len(PROMPT) - 1


def test_schemas_hold_and_leave_the_neighbours_free(served: OnVllm) -> None:
    card = served.engine.card
    grammars = Grammars(card.tokenizer, card.vocabulary_size, card.end_tokens)
    jobs = [
        asked(served, f"shape {i}", grammar=grammars.of_schema(schema, "schema"), max_tokens=40)
        for i, schema in enumerate([SCHEMA, {"enum": ["xyz", "no"]}, {"type": "object"}] * 2)
    ] + [asked(served, "free")]
    found, expected = served.events(jobs), by_default(served, jobs)
    assert [whole(each) for each in found] == [whole(each) for each in expected]
    assert whole(found[1])[0] in ('"xyz"', '"no"')
    assert found[1][-1].finish == "stop"


def test_a_schema_that_spells_an_end_token_is_refused_rather_than_cut_off(served: OnVllm) -> None:
    card = served.engine.card
    grammar = Grammars(card.tokenizer, card.vocabulary_size, card.end_tokens).of_schema(
        {"const": "<|end|>"}, "schema"
    )
    with pytest.raises(UnsupportedSchema):
        served.events([asked(served, "spells", grammar=grammar, max_tokens=40, ignore_eos=False)])


def test_a_prompt_that_fills_the_context_is_refused(served: OnVllm) -> None:
    full = served.engine.card.context_length
    job = greedy_job("full", [5] * full, 0)
    with pytest.raises(ContextLengthExceeded, match=f"fill the context of {full}"):
        served.events([job])
    fits = replace(job, id="fits", prompt=job.prompt[1:])
    assert served.events([fits])[0][-1].finish == "length"


def test_a_seed_says_the_same_again_and_another_something_else(served: OnVllm) -> None:
    params = SamplingParams(max_tokens=16, temperature=1.0, ignore_eos=True)

    def drawn(seed: int, name: str) -> GenerationJob:
        return GenerationJob(f"{seed} {name}", tuple(PROMPT), replace(params, seed=seed))

    alone = served.texts([drawn(5, "alone")])
    beside = served.texts([drawn(5, "beside"), drawn(6, "beside"), drawn(7, "beside")])
    assert beside[0] == alone[0]
    assert len(set(beside)) == 3


def test_choices_of_one_prompt_share_its_cache(served: OnVllm) -> None:
    prompt = [3, *range(20, 220)]
    vectors = random_vectors("calm", served.loaded, [1, 2])
    jobs = [
        replace(
            greedy_job(f"choice {i}", prompt, 4, term(vectors, i / 4, positions="generated")), siblings="one"
        )
        for i in range(4)
    ]
    events = served.events(jobs)
    assert sorted(max(event.cached_tokens for event in each) for each in events) == [0, 192, 192, 192]
