"""Compare ways to build a vector against made-up objects, over build seeds: the tables of docs/evidence.md.

Run: .venv/bin/python examples/shapes_vlm/study.py --model examples/shapes_vlm/model \\
     --pairs shapes_pairs/listing.jsonl

A seed is another choice of 50 of the pairs. Every way stands at the same blocks and dose; they were chosen on
dev scenes. Scenes of the test split, five questions each; intervals of single builds are in the JSON.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":
    # As a script it is started beside its siblings, and is to see them as the package that they are.
    sys.path[0] = str(Path(__file__).parents[1])

from shapes_vlm.evaluate import answerer, ask
from shapes_vlm.measures import Asked, Measure, measure
from steering.building.activations import median_norms
from steering.building.calibration import Setting, deltas_at
from steering.building.contrastive_gradient import contrastive_gradient
from steering.building.evaluation import random_deltas
from steering.building.generation import Deltas, steered_everywhere
from steering.building.grains import grains
from steering.building.grains_options import GrainsOptions
from steering.building.mean_difference import mean_difference
from steering.building.pairs import Pair, tokenise_pairs
from steering.building.readers import read_pairs
from steering.loading import LoadedModel, load_model

BUILD_PAIRS = 50
SHARED = GrainsOptions(reading="shared", tokens=8, read="last_token")
CONTEXT = GrainsOptions(reading="context", tokens=8)
WAYS: dict[str, GrainsOptions] = {
    "context": CONTEXT,
    "shared": SHARED,
    "shared, component": replace(SHARED, summary="component"),
    "random tokens": replace(CONTEXT, control=True),
    "random tokens, shared": replace(SHARED, control=True),
}
# Built from the same pairs without tokens being taken out.
OTHERS = {"mean difference": mean_difference, "contrastive gradient": contrastive_gradient}
SHOWN = (
    "adversarial_hallucination",
    "random_hallucination",
    "existence_recall",
    "chair_s",
    "list_recall",
    "counting_accuracy",
)


class Study:
    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._loaded = load_model(str(asked.model), asked.model, device="cpu")
        self._pairs = [pair for path in asked.pairs for pair in read_pairs(path).pairs]
        self._answer = answerer(self._loaded.model, self._loaded.processor)
        self._setting = Setting(tuple(asked.blocks), asked.dose)

    def run(self) -> dict[str, Any]:
        found: dict[str, list[dict[str, Measure]]] = {"unsteered": [self._measured({})]}
        show("unsteered", found["unsteered"])
        for way in self._asked.ways:
            for seed in self._asked.seeds:
                deltas = self._deltas(way, seed)
                found.setdefault(way, []).append(self._measured(deltas))
                show(f"{way}, seed {seed}", found[way][-1:])
            show(way, found[way])
        if self._asked.directions:
            found["random directions"] = [self._measured(each) for each in self._random()]
            show("random directions", found["random directions"])
        return {way: [told(each) for each in measures] for way, measures in found.items()}

    def _deltas(self, way: str, seed: int) -> dict[int, Tensor]:
        build = Random(seed).sample(self._pairs, min(BUILD_PAIRS, len(self._pairs)))
        norms = median_norms(self._loaded, [pair.preferred for pair in tokenise_pairs(self._loaded, build)])
        return deltas_at(self._setting, vectors(self._loaded, way, build, seed), norms)

    def _random(self) -> Iterator[Deltas]:
        lengths = self._deltas(self._asked.ways[0], self._asked.seeds[0])
        yield from random_deltas(lengths, self._asked.directions, 0)

    def _measured(self, deltas: Deltas) -> dict[str, Measure]:
        with steered_everywhere(self._loaded, deltas):
            answers: list[Asked] = ask(self._answer, self._asked.split, self._asked.scenes)
        return measure(answers)


def vectors(loaded: LoadedModel, way: str, build: Sequence[Pair], seed: int) -> Tensor:
    """Return the way's vectors, float32 [layers, hidden_size]."""
    if way in OTHERS:
        return OTHERS[way](loaded, tokenise_pairs(loaded, build))
    return grains(loaded, build, replace(WAYS[way], seed=seed)).vectors


def told(found: dict[str, Measure]) -> dict[str, Any]:
    return {name: asdict(each) for name, each in found.items()}


def show(way: str, found: Sequence[dict[str, Measure]]) -> None:
    """Print the measures in percent, the mean over several with their range."""
    cells = []
    for name in SHOWN:
        shares = [100 * each[name].share for each in found]
        spread = f" ({min(shares):.1f} to {max(shares):.1f})" if len(shares) > 1 else ""
        cells.append(f"{fmean(shares):.1f}{spread}")
    print(f"| {way} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    print(f"| way | {' | '.join(SHOWN)} |\n|{'---|' * (len(SHOWN) + 1)}")
    result = Study(asked).run()
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4])
    parser.add_argument("--dose", type=float, default=0.4)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *OTHERS], default=["context", "random tokens"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--directions", type=int, default=0, help="random directions beside them")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
