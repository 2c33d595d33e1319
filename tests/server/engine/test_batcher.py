"""The batch against the reference: every request gets what it would get alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from server.engine.batcher import Batcher, BatchLimits
from server.engine.protocol import GenerationJob, SamplingParams, TokenEvent
from server.engine.running import RunningRequest
from steering.errors import GenerationFailed, SteeringError
from steering.hooks import steered
from steering.loading import LoadedModel
from steering.vision import DecoderDoor, opened
from tests.server.engine.reference import greedy_job, naive_tokens, random_vectors, term
from tests.tiny_models import FAMILIES

LIMITS = BatchLimits(slots=4, prefill=16, cache=4 * 256, context=256)


class Bench:
    """A batcher with its requests and what came out of them."""

    def __init__(self, loaded: LoadedModel, steering: Any, door: DecoderDoor, limits: BatchLimits) -> None:
        self.loaded = loaded
        self.results: dict[RunningRequest, list[TokenEvent | SteeringError]] = {}
        self.batcher = Batcher(loaded, steering, door, limits, self._emit)

    def _emit(self, request: RunningRequest, result: TokenEvent | SteeringError) -> None:
        self.results[request].append(result)

    def add(self, job: GenerationJob) -> RunningRequest:
        eos = frozenset([self.loaded.tokenizer.eos_token_id])
        request = RunningRequest(job, self.loaded.tokenizer, self.loaded.vocabulary_size, eos)
        self.results[request] = []
        self.batcher.add(request)
        return request

    def run(self, most: int = 2000) -> None:
        for _ in range(most):
            if self.batcher.idle:
                return
            self.batcher.step()
        raise AssertionError("the batch did not come to an end")


@contextmanager
def bench(loaded: LoadedModel, limits: BatchLimits = LIMITS) -> Iterator[Bench]:
    with torch.inference_mode(), steered(loaded.blocks) as steering, opened(loaded) as door:
        yield Bench(loaded, steering, door, limits)


def completion(request: RunningRequest) -> list[int]:
    return request.tokens[request.prompt_length :]


def prompt_of(length: int, salt: int = 0) -> list[int]:
    return [(salt * 31 + place * place * 7 + place) % 250 for place in range(length)]


def mixed_jobs(loaded: LoadedModel) -> list[GenerationJob]:
    """Return jobs of many lengths: unsteered, one profile, two, one layer, prompt or generated only, zero."""
    calm, bold = random_vectors("calm", loaded, [1, 3]), random_vectors("bold", loaded, [0, 1, 2])
    steerings: list[list[Any]] = [
        [],
        [term(calm, 0.7)],
        [term(calm, -0.5), term(bold, 0.4)],
        [term(bold, 1.5, layers=(2,))],
        [term(calm, 1.0, positions="prompt")],
        [term(bold, 1.0, positions="generated")],
        [term(calm, 0.0)],
        [term(bold, 0.5, positions="prompt"), term(bold, -0.5, positions="generated", layers=(1,))],
    ]
    return [
        greedy_job(f"job {index}", prompt_of(3 + 7 * index, index), 6 + 5 * (index % 4), *terms)
        for index, terms in enumerate(steerings)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_gives_each_request_what_naive_generate_gives_it_alone(
    tiny_model: Callable[[str], LoadedModel], family: str
) -> None:
    loaded = tiny_model(family)
    jobs = mixed_jobs(loaded)
    with bench(loaded) as batch:
        requests = [batch.add(job) for job in jobs]
        batch.run()
    for job, request in zip(jobs, requests, strict=True):
        assert completion(request) == naive_tokens(loaded, job), job.id


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@settings(max_examples=15, deadline=None)
@given(
    script=st.lists(st.tuples(st.integers(0, 7), st.sampled_from("jjjcs"), st.integers(0, 5)), max_size=14)
)
def test_joining_leaving_and_cancelling_in_any_order_changes_nobodys_tokens(
    tiny_model: Callable[[str], LoadedModel], family: str, script: Sequence[tuple[int, str, int]]
) -> None:
    loaded = tiny_model(family)
    jobs = mixed_jobs(loaded)
    expected = reference_of(loaded)
    with bench(loaded, BatchLimits(slots=3, prefill=10, cache=3 * 60, context=120)) as batch:
        requests: list[RunningRequest] = []
        for which, action, steps in script:
            if action == "j":
                requests.append(batch.add(jobs[which]))
            elif action == "c" and requests:
                batch.batcher.drop(requests[which % len(requests)])
            for _ in range(steps):
                batch.batcher.step()
        batch.run()
    for request in requests:
        wanted = expected[request.job.id]
        assert completion(request) == wanted[: len(completion(request))]
        finished = [e for e in batch.results[request] if isinstance(e, TokenEvent) and e.finish]
        assert len(completion(request)) == len(wanted) or not finished


REFERENCES: dict[str, dict[str, list[int]]] = {}


def reference_of(loaded: LoadedModel) -> dict[str, list[int]]:
    key = loaded.identity.fingerprint
    if key not in REFERENCES:
        REFERENCES[key] = {job.id: naive_tokens(loaded, job) for job in mixed_jobs(loaded)}
    return REFERENCES[key]


def test_a_strength_of_zero_gives_the_unsteered_logits_bit_for_bit(
    tiny_model: Callable[[str], LoadedModel],
) -> None:
    loaded = tiny_model("llama")
    vectors = random_vectors("calm", loaded, [0, 1, 2, 3])
    found = []
    for terms in ([], [term(vectors, 0.0)]):
        with bench(loaded) as batch:
            job = greedy_job("job", prompt_of(20), 12, *terms)
            sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=5)
            request = batch.add(GenerationJob("job", job.prompt, sampling, job.plan))
            batch.run()
        found.append([event.logprobs for event in batch.results[request] if isinstance(event, TokenEvent)])
    assert found[0] == found[1]


def test_a_neighbours_strength_changes_no_logit_of_an_unsteered_request(
    tiny_model: Callable[[str], LoadedModel],
) -> None:
    loaded = tiny_model("qwen3")
    vectors = random_vectors("bold", loaded, [0, 1, 2, 3], scale=30.0)
    found = []
    for strength in (0.0, 1.0, -4.0):
        with bench(loaded) as batch:
            sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=5)
            quiet = batch.add(GenerationJob("quiet", tuple(prompt_of(9)), sampling))
            batch.add(greedy_job("loud", prompt_of(9, 3), 12, term(vectors, strength)))
            batch.run()
        found.append([event.logprobs for event in batch.results[quiet] if isinstance(event, TokenEvent)])
    assert found[0] == found[1] == found[2]


def test_requests_put_back_for_want_of_cache_lose_no_token(tiny_model: Callable[[str], LoadedModel]) -> None:
    loaded = tiny_model("llama")
    vectors = random_vectors("calm", loaded, [1, 2])
    jobs = [
        greedy_job(f"job {index}", prompt_of(10, index), 80, term(vectors, 0.3 * index)) for index in range(4)
    ]
    tight = BatchLimits(slots=4, prefill=32, cache=256, context=128)
    with bench(loaded, tight) as batch:
        requests = [batch.add(job) for job in jobs]
        most = 0
        while not batch.batcher.idle:
            batch.batcher.step()
            most = max(most, batch.batcher.running)
            slots, length = batch.batcher._cache.shape
            assert slots * length <= tight.cache
    assert most > 2
    for job, request in zip(jobs, requests, strict=True):
        assert completion(request) == naive_tokens(loaded, job)
        moved = 10 + 80 - 1 if job.plan.terms[0].strength else 0
        assert request.steered == [moved]


def test_the_proof_counts_each_moved_position_once(tiny_model: Callable[[str], LoadedModel]) -> None:
    loaded = tiny_model("llama")
    vectors = random_vectors("calm", loaded, [1, 2])
    choices = [{"positions": "all"}, {"positions": "prompt"}, {"positions": "generated"}]
    terms = [term(vectors, 0.2, **choice) for choice in choices]
    with bench(loaded) as batch:
        request = batch.add(greedy_job("job", prompt_of(40), 10, *terms, term(vectors, 0.0)))
        batch.run()
    # The last token is chosen, never fed back: nine generated positions pass through the model.
    assert request.steered == [49, 40, 9, 0]


def test_a_dropped_request_frees_its_slot_within_one_step(tiny_model: Callable[[str], LoadedModel]) -> None:
    loaded = tiny_model("llama")
    with bench(loaded, BatchLimits(slots=1, prefill=16, cache=256, context=256)) as batch:
        first = batch.add(greedy_job("first", prompt_of(5), 100))
        second = batch.add(greedy_job("second", prompt_of(5), 3))
        batch.batcher.step()
        batch.batcher.drop(first)
        batch.batcher.step()
        assert completion(second)


def test_a_long_prompt_does_not_keep_running_requests_from_their_tokens(
    tiny_model: Callable[[str], LoadedModel],
) -> None:
    loaded = tiny_model("llama")
    with bench(loaded) as batch:
        running = batch.add(greedy_job("running", prompt_of(4), 60))
        batch.batcher.step()
        long = batch.add(greedy_job("long", prompt_of(160), 2))
        steps = 0
        while not completion(long):
            before = len(completion(running))
            batch.batcher.step()
            steps += 1
            assert len(completion(running)) == before + 1
        assert steps == 160 // LIMITS.prefill
        batch.run()


class PoisonedBlock:
    """Makes a block raise whenever a marked request's position passes through it."""

    def __init__(self, block: nn.Module, marker: float) -> None:
        self._handle = block.register_forward_pre_hook(self._check)
        self._marker = marker

    def _check(self, _module: nn.Module, inputs: Any) -> None:
        if bool((inputs[0].sum(-1) - self._marker).abs().lt(1e-4).any()):
            raise ValueError("poison")

    def remove(self) -> None:
        self._handle.remove()


def test_an_exception_in_one_requests_work_fails_that_request_alone(
    tiny_model: Callable[[str], LoadedModel],
) -> None:
    loaded = tiny_model("llama")
    bad_token = 201
    marker = float(loaded.model.get_input_embeddings().weight[bad_token].sum())
    poison = PoisonedBlock(loaded.blocks[0], marker)
    jobs = [greedy_job(f"job {i}", prompt_of(6, i), 12) for i in range(3)]
    clean = [naive_or_none(loaded, job) for job in jobs]
    try:
        with bench(loaded, BatchLimits(slots=4, prefill=64, cache=1024, context=256)) as batch:
            good = [batch.add(job) for job in jobs]
            bad = batch.add(greedy_job("bad", [1, bad_token, 3], 12))
            batch.run()
    finally:
        poison.remove()
    assert isinstance(batch.results[bad][-1], GenerationFailed)
    assert any(tokens is not None for tokens in clean)
    for request, tokens in zip(good, clean, strict=True):
        assert tokens is None or completion(request) == tokens


def naive_or_none(loaded: LoadedModel, job: GenerationJob) -> list[int] | None:
    """Return the reference, or None where the poisoned model fails on its own."""
    try:
        return naive_tokens(loaded, job)
    except ValueError:
        return None


def test_output_that_is_not_finite_fails_the_request_and_spares_its_neighbour(
    tiny_model: Callable[[str], LoadedModel],
) -> None:
    loaded = tiny_model("llama")
    broken = random_vectors("broken", loaded, [2])
    broken.deltas[2].fill_(float("inf"))
    with bench(loaded) as batch:
        bad = batch.add(greedy_job("bad", prompt_of(5), 8, term(broken, 1.0)))
        good = batch.add(greedy_job("good", prompt_of(7), 8))
        batch.run()
    assert isinstance(batch.results[bad][-1], GenerationFailed)
    assert completion(good) == naive_tokens(loaded, good.job)


def test_what_is_not_finite_in_a_slot_is_gone_before_the_next_request_gets_it(
    tiny_model: Callable[[str], LoadedModel],
) -> None:
    loaded = tiny_model("llama")
    broken = random_vectors("broken", loaded, [1])
    broken.deltas[1].fill_(float("inf"))
    with bench(loaded, BatchLimits(slots=4, prefill=64, cache=1024, context=256)) as batch:
        long = batch.add(greedy_job("long", prompt_of(40), 30))
        bad = [batch.add(greedy_job(f"bad {i}", prompt_of(30, i), 8, term(broken, 1.0))) for i in range(2)]
        batch.batcher.step()
        batch.batcher.step()
        short = batch.add(greedy_job("short", prompt_of(7), 12))
        batch.run()
    assert all(isinstance(batch.results[request][-1], GenerationFailed) for request in bad)
    for request in (long, short):
        assert completion(request) == naive_tokens(loaded, request.job)


def test_a_short_prompt_does_not_wait_for_a_long_ones_end(tiny_model: Callable[[str], LoadedModel]) -> None:
    loaded = tiny_model("llama")
    with bench(loaded, BatchLimits(slots=4, prefill=8, cache=1024, context=256)) as batch:
        long = batch.add(greedy_job("long", prompt_of(240), 2))
        batch.batcher.step()
        short = batch.add(greedy_job("short", prompt_of(6), 2))
        for _ in range(2):
            batch.batcher.step()
        assert completion(short)
        assert not completion(long)
        batch.run()
    assert completion(long) == naive_tokens(loaded, long.job)


def test_requests_that_fail_by_themselves_do_not_end_the_engine(
    tiny_model: Callable[[str], LoadedModel],
) -> None:
    loaded = tiny_model("llama")
    vectors = random_vectors("beyond", loaded, [1, 99])
    with bench(loaded) as batch:
        for number in range(12):
            bad = batch.add(greedy_job(f"bad {number}", prompt_of(5), 4, term(vectors, 1.0)))
            batch.run()
            assert isinstance(batch.results[bad][-1], GenerationFailed)
        good = batch.add(greedy_job("good", prompt_of(5), 4))
        batch.run()
    assert completion(good) == naive_tokens(loaded, good.job)
