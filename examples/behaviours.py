"""The behaviours that the studies compare ways on: pairs to build from, and items to test on."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steering.building.building import split_pairs
from steering.building.damage import measure_damage
from steering.building.measuring import Measure, measure_by_margin, measure_by_metric, with_damage
from steering.building.metrics import read_metric
from steering.building.pairs import Message, Pair, PairsFile, tokenise_pairs, tokenise_prompt
from steering.building.questions import NeutralText, neutral_text
from steering.building.readers import read_pairs, read_prompts
from steering.loading import LoadedModel

PAIRS = Path(__file__).parent / "pairs"
MAX_TOKENS = 48
# Of a pairs file without a metric, so many are the test, the same for every seed, and so many the rest.
TEST_PAIRS, POOL = 100, 75


@dataclass(frozen=True, slots=True)
class Behaviour:
    """pairs: what a seed chooses from; test: the measure on held-out items; dev: the same on some pairs."""

    name: str
    pairs: PairsFile
    test: Measure
    dev: Callable[[Sequence[Pair]], Measure]

    def build_pairs(self, seed: int) -> tuple[Pair, ...]:
        return split_pairs(self.pairs, seed, with_test=False).build

    def dev_measure(self, seed: int) -> Measure:
        return self.dev(split_pairs(self.pairs, seed, with_test=False).dev)


def load_behaviour(loaded: LoadedModel, asked: str) -> Behaviour:
    """Return the behaviour of that name in examples/pairs, or that of a pairs file, measured by margin."""
    if Path(asked).is_file():
        return by_margin(loaded, Path(asked))
    return by_metric(loaded, asked)


def by_metric(loaded: LoadedModel, name: str) -> Behaviour:
    metric = read_metric(PAIRS / f"{name}.metric.json")

    def measure(prompts: Sequence[tuple[Message, ...]], neutral: NeutralText) -> Measure:
        tokenised = [tokenise_prompt(loaded, prompt) for prompt in prompts]
        effect = measure_by_metric(loaded, tokenised, metric, MAX_TOKENS)
        return with_damage(effect, measure_damage(loaded, neutral))

    def dev(pairs: Sequence[Pair]) -> Measure:
        return measure([pair.messages for pair in pairs], neutral_text().portion())

    test = measure(read_prompts(PAIRS / f"{name}.test.jsonl"), neutral_text())
    return Behaviour(name, read_pairs(PAIRS / f"{name}.jsonl"), test, dev)


def by_margin(loaded: LoadedModel, path: Path) -> Behaviour:
    everything = read_pairs(path)
    shuffled = random.Random(0).sample(everything.pairs, len(everything.pairs))

    def measure(pairs: Sequence[Pair], neutral: NeutralText) -> Measure:
        effect = measure_by_margin(loaded, tokenise_pairs(loaded, pairs), MAX_TOKENS)
        return with_damage(effect, measure_damage(loaded, neutral))

    def dev(pairs: Sequence[Pair]) -> Measure:
        return measure(pairs, neutral_text().portion())

    test = measure(shuffled[:TEST_PAIRS], neutral_text())
    pool = replace(everything, pairs=tuple(shuffled[TEST_PAIRS : TEST_PAIRS + POOL]))
    return Behaviour(path.stem, pool, test, dev)
