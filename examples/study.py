"""Compare ways to build a vector at one block and dose, over build seeds: the tables of docs/evidence.md.

Run: python examples/study.py cheerful --block 12 --dose 0.15 --ways influence random --tokens 1 2

Pairs, metric and held-out prompts are those of examples/pairs. Each pair is attributed once; a seed is
another choice of 50 pairs, as `grainserve build --seed` makes it. What is printed at the end is paired by
prompt, each prompt's score the mean over the seeds, against unsteered, the mean difference and random tokens.

--calibrate: each way at the best blocks and dose that the bound admits on the first seed's dev prompts, with
random tokens at those of the first way, instead of all at --block and --dose.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from behaviours import load_behaviour
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import track
from torch import Tensor, cosine_similarity
from ways import MOST_TOKENS, WAYS

from steering.building.activations import median_norms
from steering.building.calibration import Setting, calibrate, deltas_at
from steering.building.contrastive_gradient import contrastive_gradients
from steering.building.damage import accuracy_change
from steering.building.evaluation import paired_interval, random_deltas
from steering.building.grains import contrast_vectors
from steering.building.grains_options import GrainsOptions
from steering.building.mean_difference import mean_difference
from steering.building.measuring import Outcome
from steering.building.memo import Memo
from steering.building.pairs import tokenise_pairs
from steering.building.scoring import CONTRAST, Contrast, Scored, Scorer
from steering.errors import InvalidPairs
from steering.loading import LoadedModel, load_model

# What --calibrate tries.
DOSES = {(12,): (0.05, 0.075, 0.1, 0.125, 0.15, 0.2), (9, 12, 15): (0.025, 0.035, 0.05, 0.065)}
CANDIDATES = [Setting(blocks, dose) for blocks, doses in DOSES.items() for dose in doses]
BASE = "mean difference"
HEADINGS = (
    "way",
    "score (range)",
    "over unsteered",
    "over the mean difference",
    "over random tokens",
    "loss",
    "accuracy",
    "log p",
    "distinct-2",
    "chosen",
)


@dataclass(frozen=True, slots=True)
class Vector:
    """One way's vectors [layers, hidden_size] from one seed's pairs; gap: the median of its attributions."""

    way: str
    seed: int
    vectors: Tensor
    gap: float


class Study:
    """One behaviour's pairs, attributed once each."""

    def __init__(self, loaded: LoadedModel, asked: argparse.Namespace) -> None:
        self._loaded, self._asked = loaded, asked
        self._behaviour = load_behaviour(loaded, asked.behaviour)
        self._pairs = self._behaviour.pairs.pairs
        self._measure = self._behaviour.test
        self._settings: dict[str, Setting] = {}
        self._without_setting: set[str] = set()
        self._scorers: dict[str, Scorer] = {}

    def run(self) -> dict[str, Any]:
        asked = self._asked
        if asked.calibrate:
            self._calibrate()
        found: dict[str, list[Outcome]] = {"unsteered": [self._measure({}, True)]}
        rows = []
        for seed in asked.seeds:
            norms = self._norms(seed)
            for vector in self._vectors(seed):
                if vector.way == BASE:
                    base = vector.vectors[asked.block]
                if vector.way in self._without_setting:
                    continue
                # What it costs hardly differs between seeds and takes longer than the score.
                deltas = deltas_at(self._setting(vector.way), vector.vectors, norms)
                outcome = self._measure(deltas, asked.costs and seed == asked.seeds[0])
                found.setdefault(vector.way, []).append(outcome)
                cosine = float(cosine_similarity(vector.vectors[asked.block], base, dim=0))
                rows.append(told(vector, outcome, found["unsteered"][0], cosine))
        summary = list(summarised(found))
        if asked.directions:
            summary.append(self._random_directions())
        return {"asked": {**vars(asked), "cache_dir": "", "output": ""}, "seeds": rows, "summary": summary}

    def _setting(self, way: str) -> Setting:
        """Return where a way stands; random tokens stand where the first way does."""
        matched = way.replace("random", self._asked.ways[0])
        return self._settings.get(matched, Setting((self._asked.block,), self._asked.dose))

    def _calibrate(self) -> None:
        seed = self._asked.seeds[0]
        measure = self._behaviour.dev_measure(seed)
        for vector in self._vectors(seed):
            if vector.way.startswith("random"):
                continue
            try:
                found = calibrate(vector.vectors, self._norms(seed), measure, CANDIDATES, find_safe=False)
            except InvalidPairs as error:
                self._without_setting.add(vector.way)
                print(f"{vector.way}: left out: {error}", flush=True)
            else:
                self._settings[vector.way] = found.chosen.setting
                print(f"{vector.way}: {found.chosen}, best of {len(found.trials)}", flush=True)

    def _vectors(self, seed: int) -> Iterator[Vector]:
        """Yield the mean difference, the contrastive gradient, and every way with every count of tokens."""
        build = self._behaviour.build_pairs(seed)
        chosen = [self._pairs.index(pair) for pair in build]
        yield Vector(BASE, seed, mean_difference(self._loaded, tokenise_pairs(self._loaded, build)), 0.0)
        if self._asked.gradient:
            yield Vector("contrastive gradient", seed, self._gradients[:, chosen].mean(1), 0.0)
        for way in self._asked.ways:
            options = replace(WAYS[way], block=self._asked.block, seed=seed)
            contrasts = self._contrasts(options, chosen)
            gap = median(side.gap for each in contrasts for side in (each.towards, each.away))
            for count in [options.tokens] if way == "paper" else self._asked.tokens:
                fewer = [trimmed(contrast, count) for contrast in contrasts]
                yield Vector(
                    f"{way}, {count} tokens", seed, contrast_vectors(self._loaded, fewer, options), gap
                )

    def _contrasts(self, options: GrainsOptions, chosen: Sequence[int]) -> list[Contrast]:
        """Return the pairs' attributions; a direction comes from all others of the file."""
        if options.control:
            drawn = Scorer(self._loaded, self._pairs, options)
            return [drawn.contrast(number) for number in chosen]
        scored = f"{options.reading} {options.attribution.method} {options.baseline} {options.tokens}"
        if scored not in self._scorers:
            self._scorers[scored] = Scorer(self._loaded, self._pairs, options)
        scorer = self._scorers[scored]
        memo = Memo(self._asked.cache_dir / "study" / f"{self._behaviour.name} {options.block} {scored}")
        return [
            memo.recall(f"{number}", CONTRAST, partial(scorer.contrast, number))
            for number in track(chosen, scored, console=Console(stderr=True))
        ]

    @cached_property
    def _gradients(self) -> Tensor:
        return contrastive_gradients(self._loaded, tokenise_pairs(self._loaded, self._pairs))

    def _norms(self, seed: int) -> Tensor:
        build = self._behaviour.build_pairs(seed)
        return median_norms(self._loaded, [pair.preferred for pair in tokenise_pairs(self._loaded, build)])

    def _random_directions(self) -> dict[str, Any]:
        seed, setting = self._asked.seeds[0], self._setting("random")
        lengths = deltas_at(setting, next(self._vectors(seed)).vectors, self._norms(seed))
        deltas = random_deltas(lengths, self._asked.directions, seed)
        scores = [self._measure(each, False).score for each in deltas]
        print(f"{len(scores)} random directions: mean {fmean(scores):.2f}, strongest {max(scores):.2f}")
        return {"way": "random directions", "scores": scores}


def trimmed(contrast: Contrast, count: int) -> Contrast:
    def fewer(side: Scored) -> Scored:
        return replace(side, taken=side.taken[:count])

    return Contrast(fewer(contrast.towards), fewer(contrast.away))


def told(vector: Vector, found: Outcome, unsteered: Outcome, cosine: float) -> dict[str, Any]:
    row = {"way": vector.way, "seed": vector.seed, "score": found.score, "cosine": cosine, "gap": vector.gap}
    row |= costs(found, unsteered)
    print(
        {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()},
        flush=True,
    )
    return row


def costs(found: Outcome, unsteered: Outcome) -> dict[str, float]:
    """Return the changes, those of loss and distinct word pairs relative; nothing where not measured."""
    if found.fluency is None or found.damage is None:
        return {}
    assert unsteered.fluency
    assert unsteered.damage
    return {
        "loss": found.damage.loss / unsteered.damage.loss - 1,
        "accuracy": accuracy_change(found.damage, unsteered.damage).share,
        "log_probability": found.fluency.log_probability - unsteered.fluency.log_probability,
        "distinct_2": found.fluency.distinct_2 / unsteered.fluency.distinct_2 - 1,
    }


def summarised(found: dict[str, list[Outcome]]) -> Iterator[dict[str, Any]]:
    """Yield each way's mean over the seeds, with paired intervals over the prompts; print them as a table."""
    scores = {way: np.mean([each.scores for each in outcomes], axis=0) for way, outcomes in found.items()}
    unsteered = found["unsteered"][0]
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for way, mine in scores.items():
        row: dict[str, Any] = {"way": way, "score": float(mine.mean())}
        row["range"] = [pick(outcome.score for outcome in found[way]) for pick in (min, max)]
        control = ", ".join(["random", *way.split(", ")[1:]])
        for name, other in (("unsteered", "unsteered"), (BASE, BASE), ("random tokens", control)):
            if other in scores and way not in ("unsteered", other):
                row[f"over {name}"] = asdict(paired_interval(mine.tolist(), scores[other].tolist(), 0))
        row |= costs(found[way][0], unsteered)
        if unsteered.choices is not None:
            row["chosen"] = chosen_over_unsteered(found[way], unsteered)
        print(f"| {' | '.join(cells(row))} |", flush=True)
        yield row


def chosen_over_unsteered(outcomes: Sequence[Outcome], unsteered: Outcome) -> dict[str, float]:
    """Return in how many of 100 test pairs the preferred answer is likelier per token, and the change."""
    mine, others = (
        100 * np.mean([each.choices.per_token for each in many if each.choices], axis=0)
        for many in (outcomes, [unsteered])
    )
    return {"share": float(mine.mean()), **asdict(paired_interval(mine.tolist(), others.tolist(), 0))}


def cells(row: dict[str, Any]) -> list[str]:
    """Return the row of the table; a margin, in nats per token, needs a third digit."""
    low, high = row["range"]
    chosen = row.get("chosen")
    digits = 3 if chosen else 2
    differences = [row.get(f"over {other}") for other in ("unsteered", BASE, "random tokens")]
    return [
        row["way"],
        f"{row['score']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})",
        *(told_interval(difference, digits) if difference else "" for difference in differences),
        *told_costs(row),
        f"{chosen['share']:.1f}: {told_interval(chosen, 1)}" if chosen else "",
    ]


def told_costs(row: dict[str, Any]) -> list[str]:
    if "loss" not in row:
        return [""] * 4
    return [
        f"{row['loss']:+.1%}",
        f"{100 * row['accuracy']:+.0f}",
        f"{row['log_probability']:+.2f}",
        f"{row['distinct_2']:+.0%}",
    ]


def told_interval(difference: dict[str, float], digits: int) -> str:
    mean, low, high = (difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    asked = arguments()
    loaded = load_model(None, asked.cache_dir, device="auto")
    print(f"{asked.behaviour}, block {asked.block}, dose {asked.dose}", flush=True)
    found = Study(loaded, asked).run()
    if asked.output:
        asked.output.write_text(json.dumps(found, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "behaviour", help="a name in examples/pairs, or a pairs file: 100 of its pairs, by margin"
    )
    parser.add_argument("--block", type=int, default=12)
    parser.add_argument("--dose", type=float, default=0.15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["influence", "random"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2], help=f"up to {MOST_TOKENS}")
    parser.add_argument("--no-costs", dest="costs", action="store_false", help="scores alone")
    parser.add_argument("--calibrate", action="store_true", help="each way at its own best setting")
    parser.add_argument("--gradient", action="store_true", help="the contrastive gradient beside them")
    parser.add_argument("--directions", type=int, default=0, help="random directions beside them")
    parser.add_argument("--cache-dir", type=Path, default=user_cache_path("grainserve"))
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
