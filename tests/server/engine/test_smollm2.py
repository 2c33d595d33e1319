"""The engine on the real model that the server starts with: the same promises, at its size."""

import os
from pathlib import Path

import pytest
import torch
from platformdirs import user_cache_path

from server.engine.batcher import BatchLimits
from server.engine.layout import fuse_norms, store_column_major
from steering.loading import LoadedModel, load_model
from steering.types import SteeringVectors
from tests.server.engine.reference import greedy_job, naive_tokens, term
from tests.server.engine.test_batcher import bench, completion

pytestmark = pytest.mark.slow
QUESTIONS = (
    "What is the capital of France?",
    "Hi!",
    "Write a story about a lighthouse keeper who finds a letter in a bottle, and what the letter says.",
    "Name three fruits.",
    "Why is the sky blue?",
    "How do I boil an egg?",
)


@pytest.fixture(scope="module")
def embedded() -> LoadedModel:
    cache_dir = os.environ.get("GRAINSERVE_CACHE_DIR")
    loaded = load_model(None, Path(cache_dir) if cache_dir else user_cache_path("grainserve"), device="cpu")
    store_column_major(loaded.model)
    fuse_norms(loaded.model)
    return loaded


def vectors_of(loaded: LoadedModel) -> list[SteeringVectors]:
    """Return random profiles, each about a tenth of the activations' length at its layers."""
    generator = torch.Generator().manual_seed(0)
    size = loaded.identity.hidden_size
    return [
        SteeringVectors(
            f"v{n}", 1, f"{n}" * 64, {layer: torch.randn(size, generator=generator) for layer in layers}
        )
        for n, layers in enumerate([(8,), (12, 20), tuple(range(30))])
    ]


def test_a_mixed_batch_gives_what_naive_generate_gives_each_alone(embedded: LoadedModel) -> None:
    first, second, third = vectors_of(embedded)
    steerings = [
        [],
        [term(first, 0.6)],
        [term(second, -0.5, positions="prompt"), term(third, 0.1)],
        [term(third, 0.2, positions="generated")],
        [term(second, 0.0)],
        [term(first, 1.0), term(second, 0.4, layers=(20,))],
    ]
    jobs = []
    for question, terms in zip(QUESTIONS, steerings, strict=True):
        rendered = embedded.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )
        jobs.append(greedy_job(question, rendered["input_ids"], 20, *terms))
    limits = BatchLimits(slots=4, prefill=48, cache=4 * 512, context=512)
    with bench(embedded, limits) as batch:
        requests = [batch.add(job) for job in jobs]
        batch.run()
    for job, request in zip(jobs, requests, strict=True):
        assert completion(request) == naive_tokens(embedded, job), job.id
