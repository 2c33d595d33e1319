"""Measure what constrained decoding costs: eight requests kept to a schema, eight free, four of each.

Run: python examples/bench_grammar.py

All generate the same number of tokens on the embedded model; the schema wants strings that are long enough.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from server.config import Settings
from server.engine.grammar import Grammar, Grammars
from server.engine.protocol import GenerationJob, SamplingParams
from server.engine.transformers_engine import TransformersEngine, create_engine

TOKENS, REQUESTS = 64, 8
NOTES = {
    "type": "object",
    "properties": {f"note{n}": {"type": "string", "minLength": 400} for n in range(4)},
    "required": [f"note{n}" for n in range(4)],
    "additionalProperties": False,
}


async def measure(engine: TransformersEngine, rounds: int) -> None:
    card = engine.card
    grammar = Grammars(card.tokenizer, card.vocabulary_size, card.end_tokens).of_schema(NOTES, "schema")
    half = [grammar] * (REQUESTS // 2) + [None] * (REQUESTS // 2)
    kinds: dict[str, Sequence[Grammar | None]] = {
        "free": [None] * REQUESTS,
        "constrained": [grammar] * REQUESTS,
        "half": half,
    }
    await engine.start()
    try:
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        free_beside: list[float] = []
        for number in range(rounds):
            for kind in (*kinds, *reversed(kinds)):
                ends = await asyncio.gather(*(run(engine, number, i, g) for i, g in enumerate(kinds[kind])))
                rates[kind].append(REQUESTS * TOKENS / max(ends))
                if kind == "half":
                    free_beside.append(TOKENS / median(ends[REQUESTS // 2 :]))
    finally:
        await engine.close()
    base = median(rates["free"])
    print(f"eight free requests: {base:.1f} tokens/s")
    print(f"eight constrained ones: {median(rates['constrained']) / base:.3f} of it")
    print(f"four of each: {median(rates['half']) / base:.3f} of it")
    print(f"a free request beside constrained ones: {median(free_beside) * REQUESTS / base:.3f} of its speed")


async def run(engine: TransformersEngine, number: int, index: int, grammar: Grammar | None) -> float:
    """Return the seconds that one request takes."""
    question = f"Write notes about animal {number} {index} as JSON."
    prompt = engine.card.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True, grammar=grammar)
    began = time.perf_counter()
    async for event in engine.stream(GenerationJob(f"{number} {index}", tuple(prompt), sampling)):
        tokens = event.completion_tokens
    assert tokens == TOKENS
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache-dir", type=Path)
    asked = parser.parse_args()
    settings = Settings(cache_dir=asked.cache_dir) if asked.cache_dir else Settings()
    asyncio.run(measure(create_engine(settings), asked.rounds))


if __name__ == "__main__":
    main()
