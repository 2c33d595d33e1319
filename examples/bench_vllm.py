"""Measure what steering costs on vLLM: 32 requests, each steered differently, against 32 that are not.

Run in vLLM's environment: .venv-vllm/bin/python examples/bench_vllm.py [--engine-arg enforce_eager=true]

All generate the same number of tokens on the embedded model, whose shipped profiles steer; rounds of the
kinds alternate in one process. --table steers as under CUDA graphs.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from server.config import Settings
from server.engine.protocol import GenerationJob, SamplingParams
from server.engine.vllm_config import create_engine
from server.engine.vllm_engine import VllmEngine
from steering.types import SteeringPlan, SteeringTerm, SteeringVectors
from steering.vllm.plugin import NAME
from vector_store.local import open_store

REQUESTS, TOKENS = 32, 64
QUESTIONS = (
    "How was your day?",
    "Tell me about the sea.",
    "What should I cook tonight?",
    "Why is the sky blue?",
)


def plans(vectors: Sequence[SteeringVectors]) -> dict[str, list[SteeringPlan]]:
    """Return each kind's plans, one a request: none, a profile of its own strength, and two of them."""

    def steered(place: int, count: int) -> SteeringPlan:
        chosen = [vectors[(place + each) % len(vectors)] for each in range(count)]
        return SteeringPlan(
            tuple(SteeringTerm(each, (place + 1) / REQUESTS, each.layers, "all") for each in chosen)
        )

    places = range(REQUESTS)
    return {
        "unsteered": [SteeringPlan()] * REQUESTS,
        "one profile each": [steered(place, 1) for place in places],
        "two profiles each": [steered(place, 2) for place in places],
    }


def every_layer(engine: VllmEngine, vectors: SteeringVectors) -> SteeringVectors:
    """Return vectors for all layers, made of one: what steering can cost at most."""
    delta = next(iter(vectors.deltas.values()))
    layers = range(engine.card.identity.layers)
    return SteeringVectors("everywhere", 1, "0" * 64, dict.fromkeys(layers, delta * 0.1))


async def measure(engine: VllmEngine, kinds: dict[str, list[SteeringPlan]], rounds: int) -> None:
    await engine.start()
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        for number in range(-1, rounds):  # the first is not counted: each kind meets its vectors there
            for kind in (*kinds, *reversed(kinds)):
                began = time.perf_counter()
                await asyncio.gather(
                    *(run(engine, f"{number} {kind} {i}", i, plan) for i, plan in enumerate(kinds[kind]))
                )
                if number >= 0:
                    rates[kind].append(REQUESTS * TOKENS / (time.perf_counter() - began))
    finally:
        await engine.close()
    base = median(rates["unsteered"])
    print(f"{REQUESTS} unsteered requests: {base:.1f} tokens/s")
    for kind in list(kinds)[1:]:
        print(f"{kind}: {median(rates[kind]) / base:.3f} of it")


async def run(engine: VllmEngine, name: str, index: int, plan: SteeringPlan) -> None:
    question = f"{QUESTIONS[index % len(QUESTIONS)]} ({index})"
    prompt = engine.card.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    async for event in engine.stream(GenerationJob(name, tuple(prompt), sampling, plan)):
        tokens = event.completion_tokens
    assert tokens == TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--engine-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    place = {"cache_dir": asked.cache_dir} if asked.cache_dir else {}
    settings = Settings(engine="vllm", max_context=1024, engine_arg=asked.engine_arg, **place)
    engine = create_engine(settings)
    if asked.table:
        engine.config.additional_config[NAME]["graphs"] = True
    store = open_store(settings.store)
    names = ("cheerful", "formal", "poetic", "vivid")
    vectors = [store.get(name, 1).vectors for name in names]
    kinds = plans(vectors)
    kinds["every layer of the model"] = plans([every_layer(engine, vectors[0])])["one profile each"]
    asyncio.run(measure(engine, kinds, asked.rounds))


if __name__ == "__main__":
    main()
