"""Sampling draws from the distribution that was asked for, and from nothing else."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.engine.protocol import SamplingParams
from server.engine.sampling import Sampler, choose_tokens, draw, noise_key, top_logprobs

VOCABULARY = 600


def params(**choices: Any) -> SamplingParams:
    return SamplingParams(max_tokens=8, **choices)


def random_logits(seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


def frequencies(sampling: SamplingParams, logits: torch.Tensor, draws: int = 4000) -> torch.Tensor:
    sampler = Sampler(sampling, [], VOCABULARY)
    counts = Counter(int(sampler.choose(logits)) for _ in range(draws))
    return torch.tensor([counts[token] / draws for token in range(VOCABULARY)])


@pytest.mark.parametrize(
    ("choices", "warpers"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        ({"temperature": 1.0, "top_k": 5}, [TopKLogitsWarper(5)]),
        ({"temperature": 1.3, "top_p": 0.8}, [TemperatureLogitsWarper(1.3), TopPLogitsWarper(0.8)]),
        ({"temperature": 1.0, "min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        ({"temperature": 1.0, "top_k": 20, "top_p": 0.7}, [TopKLogitsWarper(20), TopPLogitsWarper(0.7)]),
    ],
)
def test_draws_follow_the_distribution_of_transformers_own_warpers(
    choices: dict[str, Any], warpers: list[LogitsProcessor]
) -> None:
    logits = random_logits()
    warped = logits[None].clone()
    for warper in warpers:
        warped = warper(torch.zeros(1, 1, dtype=torch.long), warped)
    expected = warped[0].softmax(-1)
    found = frequencies(params(seed=3, **choices), logits)
    assert found[expected == 0].sum() == 0
    assert float((found - expected).abs().max()) < 0.03


@given(st.integers(0, 1000), st.integers(0, 10**6), st.sampled_from([0.01, 0.3, 0.9, 0.999]))
def test_top_p_draws_only_from_the_smallest_set_that_reaches_it(seed: int, step: int, top_p: float) -> None:
    logits = random_logits(seed, spread=0.5)
    allowed = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), logits[None])[0].isfinite()
    assert allowed[draw(logits - logits.max(), params(top_p=top_p), noise_key(seed, step))]


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_token_without_probability_is_never_drawn(key: int) -> None:
    logits = torch.full((VOCABULARY,), -math.inf)
    logits[[7, 300]] = 0.0
    assert int(draw(logits, params(), key)) in (7, 300)


def test_rounding_that_another_batch_brings_changes_no_draw() -> None:
    logits = random_logits(spread=1.0)
    jitter = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1)) * 1e-6
    samplers = [Sampler(params(temperature=1.0, seed=11), [], VOCABULARY) for _ in range(2)]
    draws = [(int(samplers[0].choose(logits)), int(samplers[1].choose(logits + jitter))) for _ in range(3000)]
    assert sum(one != other for one, other in draws) == 0


def test_seeds_of_either_sign_are_streams_of_their_own() -> None:
    logits = random_logits()
    streams = set()
    for seed in (-2, -1, 0, 1, 2):
        sampler = Sampler(params(temperature=1.0, seed=seed), [], VOCABULARY)
        streams.add(tuple(int(sampler.choose(logits)) for _ in range(12)))
    assert len(streams) == 5


def test_a_seed_gives_the_same_tokens_whatever_the_neighbours() -> None:
    logits = random_logits()

    def first(neighbours: int) -> list[int]:
        samplers = [Sampler(params(temperature=1.0, seed=5), [], VOCABULARY)]
        samplers += [Sampler(params(temperature=1.0), [], VOCABULARY) for _ in range(neighbours)]
        return [choose_tokens([logits] * len(samplers), samplers)[0] for _ in range(20)]

    assert first(0) == first(3)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits, prompt = random_logits(), [3, 9, 9, 40]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), logits[None].clone())[0]
    sampler = Sampler(params(temperature=0.0, repetition_penalty=1.7), prompt, VOCABULARY)
    assert torch.equal(sampler._adjusted(logits.clone()), expected)


def test_presence_and_frequency_penalties_count_the_completion_alone() -> None:
    """Source: OpenAI, mu[j] -> mu[j] - c[j] * frequency - (c[j] > 0) * presence."""
    sampler = Sampler(
        params(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25), [1, 2], VOCABULARY
    )
    for token in (4, 4, 6):
        sampler.record(token)
    moved = sampler._adjusted(torch.zeros(VOCABULARY))
    assert moved[[1, 4, 6, 7]].tolist() == [0.0, -1.0, -0.75, 0.0]


def test_the_repetition_penalty_counts_what_a_bias_gave() -> None:
    logits = torch.tensor([4.0, 4.2, -9.0])
    sampler = Sampler(params(temperature=0.0, repetition_penalty=2.0, logit_bias={0: 3.0}), [0], 3)
    assert int(sampler.choose(logits)) == 1  # (4 + 3) / 2 < 4.2 < 4 / 2 + 3


def test_a_logit_bias_forbids_and_forces() -> None:
    logits = random_logits()
    best = int(logits.argmax())
    forbidden = Sampler(params(temperature=0.0, logit_bias={best: -100.0}), [], VOCABULARY)
    forced = Sampler(params(temperature=1.0, logit_bias={17: 100.0}), [], VOCABULARY)
    assert int(forbidden.choose(logits)) != best
    assert int(forced.choose(logits)) == 17


def test_a_vanishing_temperature_is_greedy() -> None:
    logits = random_logits()
    assert int(Sampler(params(temperature=1e-300), [], VOCABULARY).choose(logits)) == int(logits.argmax())


def test_logprobs_are_natural_and_begin_with_the_chosen_token() -> None:
    logits = random_logits()
    expected = logits.double().softmax(-1).log()
    (token, logprob), *top = top_logprobs(logits, 11, 3)
    assert token == 11
    assert logprob == pytest.approx(float(expected[11]), abs=1e-4)
    assert [t for t, _ in top] == expected.topk(3).indices.tolist()
