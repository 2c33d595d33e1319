"""Choices of one prompt share its prefill, each as if alone; log-probabilities of prompts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from server.engine.protocol import GenerationJob, SamplingParams, TokenEvent
from steering.loading import LoadedModel
from steering.types import SteeringTerm
from tests.server.engine.reference import greedy_job, naive_tokens, random_vectors, term
from tests.server.engine.test_batcher import Bench, bench, completion, prompt_of

Loader = Callable[[str], LoadedModel]
STRENGTHS = (0.0, 0.5, 1.0, 2.0)


def prefilled(batch: Bench) -> list[int]:
    """Return a list that each forward pass will add its number of prompt tokens to."""
    counts: list[int] = []
    forward = batch.batcher._forward

    def counting(pieces: Any) -> Any:
        counts.append(sum(p.count for p in pieces if p.request.computed < p.request.prompt_length))
        return forward(pieces)

    batch.batcher._forward = counting  # type: ignore[assignment]
    return counts


def sweep(loaded: LoadedModel, positions: str) -> list[GenerationJob]:
    vectors = random_vectors("calm", loaded, [1, 2])
    terms: list[SteeringTerm] = [term(vectors, strength, positions=positions) for strength in STRENGTHS]
    return [replace(greedy_job(f"{t.strength}", prompt_of(40), 12, t), siblings="run") for t in terms]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(("positions", "prefills"), [("generated", 1), ("all", 4)])
def test_a_sweep_prefills_once_where_the_prompt_is_not_steered(
    tiny_model: Loader, family: str, positions: str, prefills: int
) -> None:
    loaded = tiny_model(family)
    jobs = sweep(loaded, positions)
    with bench(loaded) as batch:
        counts = prefilled(batch)
        requests = [batch.add(job) for job in jobs]
        batch.run()
    assert sum(counts) == 40 * prefills
    for job, request in zip(jobs, requests, strict=True):
        assert completion(request) == naive_tokens(loaded, job)


def test_choices_of_one_prompt_share_its_prefill_and_draw_apart(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    sampling = [SamplingParams(max_tokens=20, seed=seed, ignore_eos=True) for seed in range(4)]
    jobs = [GenerationJob(f"{s.seed}", tuple(prompt_of(30)), s, siblings="run") for s in sampling]
    with bench(loaded) as batch:
        counts = prefilled(batch)
        together = [batch.add(job) for job in jobs]
        batch.run()
    assert sum(counts) == 30
    with bench(loaded) as batch:
        alone = []
        for job in jobs:
            alone.append(batch.add(job))
            batch.run()
    assert [completion(request) for request in together] == [completion(request) for request in alone]
    assert len({tuple(completion(request)) for request in together}) > 1


def test_a_leader_that_leaves_is_followed_by_another(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    jobs = [replace(greedy_job(f"{n}", prompt_of(60), 8), siblings="run") for n in range(3)]
    with bench(loaded) as batch:
        requests = [batch.add(job) for job in jobs]
        batch.batcher.step()
        batch.batcher.drop(requests[0])
        batch.run()
    for request in requests[1:]:
        assert completion(request) == naive_tokens(loaded, jobs[0])


def test_strangers_share_nothing(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    with bench(loaded) as batch:
        counts = prefilled(batch)
        for name in ("a", "b"):
            batch.add(replace(greedy_job(name, prompt_of(10), 3), siblings=name))
        batch.run()
    assert sum(counts) == 20


def reference_logprobs(loaded: LoadedModel, prompt: tuple[int, ...]) -> list[float]:
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    return [float(logits[place, token]) for place, token in enumerate(prompt[1:])]


@pytest.mark.parametrize("length", [2, 7, 60])
@pytest.mark.parametrize("tokens", [0, 5])
def test_a_prompts_log_probabilities_are_the_models(tiny_model: Loader, length: int, tokens: int) -> None:
    loaded = tiny_model("llama")
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, prompt_logprobs=2)
    job = GenerationJob("job", tuple(prompt_of(length)), params)
    with bench(loaded) as batch:
        neighbour = batch.add(greedy_job("other", prompt_of(20), 30))
        for _ in range(4):
            batch.batcher.step()
        request = batch.add(job)
        batch.run()
    first, *later = batch.results[request]
    assert isinstance(first, TokenEvent)
    found = [position.chosen.logprob for position in first.prompt_logprobs]
    assert found == pytest.approx(reference_logprobs(loaded, job.prompt), abs=1e-4)
    assert all(len(position.top) == 2 for position in first.prompt_logprobs)
    assert all(isinstance(event, TokenEvent) and not event.prompt_logprobs for event in later)
    last = [first, *later][-1]
    assert isinstance(last, TokenEvent)
    assert (last.completion_tokens, last.finish) == (tokens, "length")
    assert completion(neighbour) == naive_tokens(loaded, neighbour.job)
