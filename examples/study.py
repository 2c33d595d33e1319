"""Compare ways to build a vector at one block and dose, over build seeds: the tables of docs/evidence.md.

Run: python examples/study.py cheerful --block 18 --dose 0.2 --seeds 0 1 --ways direction random

Pairs, metric and held-out prompts are those of examples/pairs. For each seed: another choice of 50 pairs, a
vector each way, its score on all held-out prompts, and its paired difference from unsteered and from the mean
difference of the same pairs.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from platformdirs import user_cache_path
from torch import Tensor

from steering.building.activations import median_norms
from steering.building.building import split_pairs
from steering.building.calibration import Setting, deltas_at
from steering.building.evaluation import paired_interval, random_deltas
from steering.building.grains import PAPER, GrainsOptions, grains
from steering.building.mean_difference import mean_difference
from steering.building.measuring import Measure, Outcome, measure_by_metric
from steering.building.metrics import read_metric
from steering.building.pairs import Pair, tokenise_pairs, tokenise_prompt
from steering.building.readers import read_pairs, read_prompts
from steering.loading import LoadedModel, load_model

PAIRS = Path(__file__).parent / "pairs"
DEFAULT = GrainsOptions(tokens=5)
WAYS: dict[str, GrainsOptions] = {
    "response": DEFAULT,
    "direction": replace(DEFAULT, reading="direction"),
    "demonstration": replace(DEFAULT, reading="demonstration"),
    "shared": replace(DEFAULT, reading="shared"),
    "random": replace(DEFAULT, control=True),
    "paper": PAPER,
}


def main() -> None:
    asked = arguments()
    loaded = load_model(None, asked.cache_dir, device="auto")
    pairs = read_pairs(PAIRS / f"{asked.behaviour}.jsonl")
    measure = measure_of(loaded, asked.behaviour)
    unsteered = measure({}, True)
    print(
        f"{asked.behaviour}, block {asked.block}, dose {asked.dose}, unsteered {unsteered.score:.2f}",
        flush=True,
    )
    rows = []
    for seed in asked.seeds:
        build = split_pairs(pairs, seed, with_test=False).build
        norms = median_norms(loaded, [pair.preferred for pair in tokenise_pairs(loaded, build)])
        setting = Setting((asked.block,), asked.dose)

        def score(vectors: Tensor, setting: Setting = setting, norms: Tensor = norms) -> Outcome:
            return measure(deltas_at(setting, vectors, norms), True)

        reference = mean_difference(loaded, tokenise_pairs(loaded, build))
        baseline = score(reference)
        rows.append(told("mean difference", seed, baseline, unsteered, baseline))
        outcomes, known = (unsteered, baseline), (asked.block, reference)
        rows += [row_of(loaded, way, seed, build, score, outcomes, known) for way in asked.ways]
        if asked.directions:
            deltas = deltas_at(setting, reference, norms)
            scores = [measure(each, False).score for each in random_deltas(deltas, asked.directions, seed)]
            print(
                f"{asked.directions} random directions: mean {fmean(scores):.2f}, strongest {max(scores):.2f}"
            )
    if asked.output:
        asked.output.write_text(json.dumps(rows, indent=2) + "\n")


def row_of(
    loaded: LoadedModel,
    way: str,
    seed: int,
    build: Sequence[Pair],
    score: Callable[[Tensor], Outcome],
    outcomes: tuple[Outcome, Outcome],
    reference: tuple[int, Tensor],
) -> dict[str, Any]:
    """Return one way's line; outcomes: unsteered and the mean difference; reference: block and vectors."""
    block, difference = reference
    built = grains(loaded, build, replace(WAYS[way], seed=seed, block=block))
    row = told(way, seed, score(built.vectors), *outcomes)
    cosine = float(
        (built.vectors[block] @ difference[block]) / built.vectors[block].norm() / difference[block].norm()
    )
    gap = round(median(built.gaps), 4)
    print(f"    cosine to the mean difference {cosine:.2f}, median gap {gap:.1%}", flush=True)
    return {**row, "cosine": cosine, "median_gap": gap}


def told(way: str, seed: int, found: Outcome, unsteered: Outcome, baseline: Outcome) -> dict[str, Any]:
    effect = paired_interval(found.scores, unsteered.scores, 0)
    over = paired_interval(found.scores, baseline.scores, 0)
    assert found.fluency is not None
    print(
        f"seed {seed} {way:16} {found.score:6.2f}, "
        f"effect {effect.mean:+.2f} [{effect.low:.2f}, {effect.high:.2f}], "
        f"over the mean difference {over.mean:+.2f} [{over.low:.2f}, {over.high:.2f}], "
        f"distinct-2 {found.fluency.distinct_2:.2f}, log p {found.fluency.log_probability:.2f}",
        flush=True,
    )
    return {"way": way, "seed": seed, "score": found.score, "effect": asdict(effect), "over": asdict(over)}


def measure_of(loaded: LoadedModel, behaviour: str) -> Measure:
    prompts = [tokenise_prompt(loaded, prompt) for prompt in read_prompts(PAIRS / f"{behaviour}.test.jsonl")]
    return measure_by_metric(loaded, prompts, read_metric(PAIRS / f"{behaviour}.metric.json"), 48)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "behaviour", choices=sorted(path.name.split(".")[0] for path in PAIRS.glob("*.metric.json"))
    )
    parser.add_argument("--block", type=int, default=18)
    parser.add_argument("--dose", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["response", "direction", "random"])
    parser.add_argument("--directions", type=int, default=0, help="random directions beside them")
    parser.add_argument("--cache-dir", type=Path, default=user_cache_path("grainserve"))
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
