"""Do attributions say what taking a token out does? Rank correlation of scores with single ablations.

Run: python examples/compare_scores.py poetic --pairs 5 --block 12

Each answer's tokens are scored by how far they move a block's output along the other pairs' contrastive
gradient: by integrated gradients that add up, by one gradient at the input, and by taking each token out.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median

from behaviours import PAIRS
from platformdirs import user_cache_path
from scipy.stats import spearmanr

from steering.building.attribution import AttributionOptions
from steering.building.grains_options import ABLATION, GrainsOptions
from steering.building.readers import read_pairs
from steering.building.scoring import Scored, Scorer
from steering.loading import load_model

METHODS = {
    "integrated gradients": AttributionOptions(),
    "one gradient": AttributionOptions(method="gradient"),
}


def main() -> None:
    asked = arguments()
    loaded = load_model(None, asked.cache_dir, device="auto")
    pairs = read_pairs(PAIRS / f"{asked.behaviour}.jsonl").pairs[: asked.directions]
    options = GrainsOptions(block=asked.block, attribution=ABLATION)
    exact = Scorer(loaded, pairs, options)
    others = {
        name: Scorer(loaded, pairs, replace(options, attribution=method)) for name, method in METHODS.items()
    }
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for number in range(asked.pairs):
        known = exact.contrast(number)
        for name, scorer in others.items():
            contrast = scorer.contrast(number)
            sides = ((known.towards, contrast.towards), (known.away, contrast.away))
            found[name] += [agreement(*side) for side in sides]
    for name, agreements in found.items():
        shown = ", ".join(f"{each:.2f}" for each in sorted(agreements))
        print(f"{name}: median rank correlation {median(agreements):.2f} ({shown})")


def agreement(known: Scored, found: Scored) -> float:
    return float(spearmanr(known.scores, found.scores).statistic)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("behaviour")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--directions", type=int, default=30, help="pairs that the gradient comes from")
    parser.add_argument("--block", type=int, default=12)
    parser.add_argument("--cache-dir", type=Path, default=user_cache_path("grainserve"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
