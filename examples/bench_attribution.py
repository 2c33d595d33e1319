"""Attribution and activations of preference pairs: what the builder does against a plain loop.

Run: python examples/bench_attribution.py [--pairs 10] [--threads 2]

The plain loop takes one sequence and one step at a time through the whole sequence and all logits, and calls
`backward`, as published scripts for GrAInS do (github.com/duykhuongnguyen/GrAInS). Objective, quadrature,
ablation and the activations that are averaged are the same on both sides, so that the results must be equal.
"""

import argparse
import math
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from steering.building.ablation import BASELINES, ablate, embed, embed_ablated, strongest
from steering.building.activations import mean_activations, watching
from steering.building.attribution import AttributionOptions, attribute_answer
from steering.building.pairs import TokenisedPair, TokenSequence, tokenise_pairs
from steering.building.readers import read_pairs
from steering.loading import LoadedModel, load_model

STEPS, TOKENS = 20, 10
LENGTH = 60  # tokens of a sequence, which the pairs that are taken come closest to
PAIRS = Path(__file__).parent / "pairs" / "cheerful.jsonl"

# Scores [answer length] and activation shifts [layers, hidden_size], one of each a sequence.
Found = list[tuple[Tensor, Tensor]]


def far_from_usual(pair: TokenisedPair) -> float:
    return abs((len(pair.preferred.ids) + len(pair.dispreferred.ids)) / 2 - LENGTH)


def batched(loaded: LoadedModel, sequences: Sequence[TokenSequence], baseline: Tensor) -> Found:
    options = AttributionOptions(steps=STEPS, tolerance=math.inf)
    scores = [attribute_answer(loaded, sequence, baseline, options).scores for sequence in sequences]
    ablated = [without(sequence, each) for sequence, each in zip(sequences, scores, strict=True)]
    activations = mean_activations(loaded, [*sequences, *ablated], baseline)
    whole, rest = activations.split(len(sequences), dim=1)
    return list(zip(scores, (whole - rest).unbind(1), strict=True))


def looped(loaded: LoadedModel, sequences: Sequence[TokenSequence], baseline: Tensor) -> Found:
    return [looped_sequence(loaded, sequence, baseline) for sequence in sequences]


def looped_sequence(loaded: LoadedModel, sequence: TokenSequence, baseline: Tensor) -> tuple[Tensor, Tensor]:
    embeddings = embed(loaded, sequence.ids)
    prompt, answer = embeddings[: sequence.start], embeddings[sequence.start :]
    targets = torch.tensor(sequence.ids[sequence.start + 1 :])[:, None]
    difference, scores = answer - baseline, torch.zeros(len(answer))
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = (baseline + float(node) * difference).requires_grad_(True)
        logits = loaded.model(inputs_embeds=torch.cat([prompt, point])[None]).logits[0]
        predicted = torch.log_softmax(logits[sequence.start : -1], dim=-1)
        loaded.model.zero_grad()
        predicted.gather(1, targets).sum().backward()
        assert point.grad is not None
        scores += float(weight) * (point.grad * difference).sum(-1)
    ends = [averages(loaded, each, baseline) for each in (sequence, without(sequence, scores))]
    return scores, ends[0] - ends[1]


def averages(loaded: LoadedModel, sequence: TokenSequence, baseline: Tensor) -> Tensor:
    found: dict[int, Tensor] = {}
    with (
        torch.no_grad(),
        watching(
            loaded.blocks, lambda layer, hidden: found.update({layer: hidden[0, sequence.start :].mean(0)})
        ),
    ):
        loaded.model(inputs_embeds=embed_ablated(loaded, sequence, baseline)[None])
    return torch.stack([found[layer] for layer in range(len(loaded.blocks))])


def without(sequence: TokenSequence, scores: Tensor) -> TokenSequence:
    return ablate(
        sequence, [sequence.start + place for place in strongest(scores, range(len(scores)), TOKENS)]
    )


def timed(work: Callable[[], Found]) -> tuple[Found, float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache-dir", type=Path, default=user_cache_path("grainserve"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    loaded = load_model(None, asked.cache_dir, device="cpu")
    tokenised = sorted(tokenise_pairs(loaded, read_pairs(PAIRS).pairs), key=far_from_usual)[: asked.pairs]
    sequences = [side for pair in tokenised for side in (pair.preferred, pair.dispreferred)]
    baseline = BASELINES["mean"](loaded)
    lengths = [len(sequence.ids) for sequence in sequences]
    print(f"{asked.pairs} pairs, {np.mean(lengths):.0f} tokens each, {STEPS} steps, {asked.threads} threads")

    batched(loaded, sequences[:2], baseline)
    fast, first = timed(lambda: batched(loaded, sequences, baseline))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    _, inputs_only = timed(lambda: looped(loaded, sequences, baseline))
    loaded.model.requires_grad_(True)
    slow, plain = timed(lambda: looped(loaded, sequences, baseline))
    loaded.model.requires_grad_(False)
    _, second = timed(lambda: batched(loaded, sequences, baseline))
    ours = (first + second) / 2
    print(f"the builder: {ours:.1f} s ({first:.1f}, {second:.1f}), {memory:.2f} GB at most")
    print(f"plain loop, backward as it comes: {plain:.1f} s, {plain / ours:.2f} times as long")
    print(
        f"the same, gradients of the inputs only: {inputs_only:.1f} s, {inputs_only / ours:.2f} times as long"
    )
    worst = max(float((a[0] - b[0]).abs().max() / a[0].abs().max()) for a, b in zip(slow, fast, strict=True))
    print(f"largest difference of a score, relative to its sequence's largest: {worst:.1e}")


if __name__ == "__main__":
    main()
