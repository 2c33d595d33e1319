"""Measure what images cost others: pauses of running text requests, and steered against unsteered throughput.

Run: python examples/bench_images.py

The model is a LLaVA of random weights: a language model of SmolLM2-135M's shape behind a vision tower of 12
layers that makes 576 tokens of a picture. Weights do not matter for time. Nothing is downloaded.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import torch
from platformdirs import user_cache_path
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from server.engine.batcher import BatchLimits
from server.engine.layout import fuse_norms, store_column_major
from server.engine.protocol import GenerationJob, SamplingParams
from server.engine.transformers_engine import PREFILL_ON_CPU, PREFILL_ON_GPU, TransformersEngine
from steering.blocks import decoder_blocks
from steering.embedded import embedded_model
from steering.loading import LoadedModel, choose_device
from steering.types import ModelIdentity, SteeringPlan, SteeringTerm, SteeringVectors
from steering.vision import ImageInputs

IMAGE, PIECES = 5, 576
SLOTS, CONTEXT = 16, 1024


def main() -> None:
    asked = arguments()
    loaded = random_llava(asked)
    print(f"on {loaded.device} in {loaded.model.dtype}, {torch.get_num_threads()} threads", flush=True)
    asyncio.run(measure(loaded, asked.rounds))


async def measure(loaded: LoadedModel, rounds: int) -> None:
    async with running(loaded) as engine:
        quiet, beside = [], []
        for number in range(rounds):
            quiet.append(await pauses(engine, number, images=0))
            beside.append(await pauses(engine, number, images=2))
        for name, found in (("quiet", quiet), ("beside two images", beside)):
            average, late = (median(each[i] for each in found) * 1000 for i in (0, 1))
            print(f"pause between a text request's tokens, {name}: {average:.0f} ms, 95% {late:.0f} ms")
        rates: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds):
            for steered in (False, True):
                rates[steered].append(await throughput(engine, loaded, number, steered))
        ratio = median(a / b for a, b in zip(rates[True], rates[False], strict=True))
        told = f"{median(rates[False]):.1f} tokens/s unsteered, steered {ratio:.3f} of it"
        print(f"eight image requests at once: {told}")


async def pauses(engine: TransformersEngine, number: int, images: int) -> tuple[float, float]:
    """Return the mean and the 95th percentile of the pauses of four text requests, in seconds.

    Beside images, only pauses that overlap the images' prefill, from their arrival to their first token.
    """
    texts = [text_job(f"text {number} {index}", 96) for index in range(4)]
    spans: list[tuple[float, float]] = []

    async def picture(index: int) -> None:
        began = time.perf_counter()
        job = image_job(f"image {number} {index}", 1, number * 7 + index)
        ends = [time.perf_counter() async for _ in engine.stream(job)]
        spans.append((began, ends[-1]))

    async def ticks(job: GenerationJob) -> list[float]:
        return [time.perf_counter() async for _ in engine.stream(job)]

    async def pictures() -> None:
        await asyncio.sleep(1.0)
        await asyncio.gather(*(picture(index) for index in range(images)))

    streams = await asyncio.gather(*(ticks(job) for job in texts), pictures())
    found = [pair for stream in streams[:-1] if stream for pair in pairwise(stream)]
    inside = [
        later - earlier
        for earlier, later in found
        if not images or any(earlier < end and later > begin for begin, end in spans)
    ]
    return mean(inside), sorted(inside)[int(0.95 * len(inside))]


async def throughput(engine: TransformersEngine, loaded: LoadedModel, number: int, steered: bool) -> float:
    """Return the tokens per second of eight image requests of 32 tokens, prefill included."""
    plan = steering(loaded) if steered else SteeringPlan()
    jobs = [image_job(f"{number} {steered} {index}", 32, index, plan) for index in range(8)]

    async def finish(job: GenerationJob) -> None:
        async for _ in engine.stream(job):
            pass

    began = time.perf_counter()
    await asyncio.gather(*map(finish, jobs))
    return 8 * 32 / (time.perf_counter() - began)


def text_job(name: str, tokens: int) -> GenerationJob:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return GenerationJob(name, tuple(range(10, 40)), sampling)


def image_job(name: str, tokens: int, seed: int, plan: SteeringPlan = SteeringPlan()) -> GenerationJob:
    pixels = torch.randn((1, 3, 336, 336), generator=torch.Generator().manual_seed(seed))
    prompt = (10, *[IMAGE] * PIECES, *range(20, 40))
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    images = ImageInputs({"pixel_values": pixels}, ((1, 1 + PIECES),))
    return GenerationJob(name, prompt, sampling, plan, images)


def steering(loaded: LoadedModel) -> SteeringPlan:
    deltas = {12: torch.randn(loaded.identity.hidden_size, generator=torch.Generator().manual_seed(0))}
    return SteeringPlan((SteeringTerm(SteeringVectors("random", 1, "0" * 64, deltas), 1.0, (12,), "all"),))


@asynccontextmanager
async def running(loaded: LoadedModel) -> AsyncIterator[TransformersEngine]:
    prefill = PREFILL_ON_GPU if loaded.device.type == "cuda" else PREFILL_ON_CPU
    engine = TransformersEngine(loaded, BatchLimits(SLOTS, prefill, SLOTS * CONTEXT, CONTEXT), 64)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def random_llava(asked: argparse.Namespace) -> LoadedModel:
    source = embedded_model(asked.cache_dir)
    text = LlamaConfig.from_pretrained(source)
    vision = CLIPVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    place = choose_device("auto")
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(False).to(place)
    if place.type == "cpu":
        store_column_major(model)
        fuse_norms(model)
    identity = ModelIdentity(
        "random-llava", type(model).__name__, text.num_hidden_layers, text.hidden_size, "0" * 64
    )
    return LoadedModel(model, AutoTokenizer.from_pretrained(source), decoder_blocks(model), identity)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache-dir", type=Path, default=user_cache_path("grainserve"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
