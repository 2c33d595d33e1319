"""Images in the engine: every family answers as its own `generate` does, in batches, steered and not."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from server.engine.batcher import BatchLimits
from server.engine.protocol import GenerationJob, TokenEvent
from server.engine.token_bytes import token_bytes
from steering.errors import GenerationFailed
from steering.loading import LoadedModel
from steering.picturing import Pictured, try_images
from steering.types import SteeringTerm
from steering.vision import ImageInputs, token_spans
from tests.server.engine.reference import greedy_job, naive_tokens, random_vectors, term
from tests.server.engine.test_transformers_engine import answer, idle, running
from tests.tiny_vlms import VLMS, load_tiny_mistral3

Loader = Callable[[str], LoadedModel]
SIZES = ((60, 40), (20, 40), (33, 33))


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def pictured_job(
    loaded: LoadedModel, name: str, images: int, words: str, *terms: SteeringTerm
) -> GenerationJob:
    assert loaded.image_token is not None
    pictured = Pictured(loaded.processor, loaded.image_token, keeps=True)
    pictures = [noise(SIZES[index], len(words) + index) for index in range(images)]
    parts = [{"type": "text", "text": words}] + [{"type": "image"}] * images + [{"type": "text", "text": "?"}]
    prompt, inputs = pictured.prompt(pictured.render([{"role": "user", "content": parts}]), pictures)
    job = greedy_job(name, prompt, 12, *terms, images=inputs)
    return replace(job, sampling=replace(job.sampling, logprobs=0))


def mixed_jobs(loaded: LoadedModel) -> list[GenerationJob]:
    calm, bold = random_vectors("calm", loaded, [1, 2]), random_vectors("bold", loaded, [0, 3])
    return [
        pictured_job(loaded, "plain", 1, "what"),
        pictured_job(loaded, "text alone", 0, "nothing to see"),
        pictured_job(loaded, "steered", 1, "which", term(calm, 1.0)),
        pictured_job(loaded, "two images", 2, "are these alike", term(bold, -0.7)),
        pictured_job(loaded, "images alone", 2, "these", term(calm, 1.5, tokens="image"), term(bold, 0.5)),
        pictured_job(loaded, "words alone", 1, "a", term(calm, 1.5, tokens="text", positions="prompt")),
        pictured_job(loaded, "steered text", 0, "and no image here", term(bold, 1.0)),
        pictured_job(loaded, "generated", 1, "of", term(calm, 1.0, positions="generated")),
    ]


def answers(
    loaded: LoadedModel, jobs: Sequence[GenerationJob], limits: BatchLimits | None = None
) -> list[list[TokenEvent]]:
    async def main() -> list[list[TokenEvent]]:
        async with running(loaded, max_waiting=16, limits=limits) as engine:
            return await asyncio.gather(*(answer(engine, job) for job in jobs))

    return asyncio.run(main())


def chosen(events: Sequence[TokenEvent]) -> tuple[bytes, ...]:
    return tuple(position.chosen.bytes for event in events for position in event.logprobs)


def told(loaded: LoadedModel, tokens: Sequence[int]) -> tuple[bytes, ...]:
    return tuple(token_bytes(loaded.tokenizer, token)[1] for token in tokens)


@pytest.mark.parametrize("family", VLMS)
def test_images_and_words_in_one_batch_get_what_generate_gives_each_alone(
    family: str, tiny_vlm: Loader
) -> None:
    loaded = tiny_vlm(family)
    try_images(loaded)
    jobs = mixed_jobs(loaded)
    expected = [told(loaded, naive_tokens(loaded, job)) for job in jobs]
    assert len(set(expected)) == len(jobs), "the steering and the images must matter"
    for job, events, tokens in zip(jobs, answers(loaded, jobs), expected, strict=True):
        assert chosen(events) == tokens, job.id


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_a_prompt_cut_into_pieces_or_put_back_answers_the_same(family: str, tiny_vlm: Loader) -> None:
    loaded = tiny_vlm(family)
    jobs = [job for job in mixed_jobs(loaded) for _ in range(2)]
    # Six tokens a piece, fewer than an image has; room for about two of the four slots.
    tight = BatchLimits(slots=4, prefill=6, cache=170, context=128)
    for job, events in zip(jobs, answers(loaded, jobs, tight), strict=True):
        assert chosen(events) == told(loaded, naive_tokens(loaded, job)), job.id


def mistral3_job(name: str, rows: int, *terms: SteeringTerm) -> GenerationJob:
    """Return a job with an image of rows x 2 tokens, each row with a token for its end."""
    prompt = (1, 2, *(5, 5, 3) * rows, 7, 8, 9)
    pixels = torch.randn((1, 3, 16 * rows, 32), generator=torch.Generator().manual_seed(rows))
    tensors = {"pixel_values": pixels, "image_sizes": torch.tensor([[16 * rows, 32]])}
    inputs = ImageInputs(tensors, token_spans(prompt, 5))
    job = greedy_job(name, prompt, 12, *terms, images=inputs)
    return replace(job, sampling=replace(job.sampling, logprobs=0))


def test_mistral3_answers_as_generate_does(tmp_path: Path) -> None:
    loaded = load_tiny_mistral3(tmp_path)
    calm = random_vectors("calm", loaded, [1, 2])
    jobs = [
        mistral3_job("plain", 1),
        mistral3_job("steered", 2, term(calm, 1.0)),
        mistral3_job("image alone", 2, term(calm, 1.0, tokens="image")),
        replace(mistral3_job("words", 1), prompt=tuple(range(10, 19)), images=None),
    ]
    expected = [told(loaded, naive_tokens(loaded, job)) for job in jobs]
    assert len(set(expected)) == len(jobs)
    assert [chosen(events) for events in answers(loaded, jobs)] == expected


def test_images_that_the_model_cannot_take_fail_their_request_alone(tiny_vlm: Loader) -> None:
    loaded = tiny_vlm("llava")
    good, text = pictured_job(loaded, "good", 1, "what"), pictured_job(loaded, "text", 0, "no image")
    assert good.images is not None
    broken = replace(good, id="broken", images=ImageInputs({"pixel_values": torch.zeros(2, 2)}, ((0, 2),)))

    async def main() -> list[Any]:
        async with running(loaded) as engine:
            jobs = (answer(engine, job) for job in (good, broken, text))
            return await asyncio.gather(*jobs, return_exceptions=True)

    first, failed, last = asyncio.run(main())
    assert isinstance(failed, GenerationFailed)
    assert chosen(first) == told(loaded, naive_tokens(loaded, good))
    assert chosen(last) == told(loaded, naive_tokens(loaded, text))


def test_a_request_abandoned_while_its_images_are_seen_leaves_nothing_behind(tiny_vlm: Loader) -> None:
    loaded = tiny_vlm("llava")
    jobs = [pictured_job(loaded, f"{index}", 2, "w" * index) for index in range(1, 7)]

    async def main() -> list[TokenEvent]:
        async with running(loaded, slots=2) as engine:
            for job in jobs:
                await engine.stream(job).aclose()
            await idle(engine)
            return await answer(engine, jobs[0])

    assert chosen(asyncio.run(main())) == told(loaded, naive_tokens(loaded, jobs[0]))


def test_the_proof_counts_image_and_text_tokens_apart(tiny_vlm: Loader) -> None:
    loaded = tiny_vlm("llava")
    calm = random_vectors("calm", loaded, [1])
    terms = [term(calm, 0.1, tokens=kind) for kind in ("all", "image", "text")]
    job = pictured_job(loaded, "counted", 2, "how many", *terms)
    assert job.images is not None
    seen = sum(end - begin for begin, end in job.images.spans)
    # The last token is chosen and never read.
    read = len(job.prompt) + job.sampling.max_tokens - 1
    assert answers(loaded, [job])[0][-1].steered_tokens == (read, seen, read - seen)
