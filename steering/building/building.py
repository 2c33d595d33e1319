"""From a pairs file to calibrated deltas with evidence: the whole way of a build."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from steering.building.activations import median_norms
from steering.building.builders import BUILDERS, control_vectors
from steering.building.calibration import (
    Calibration,
    DamageBound,
    Setting,
    calibrate,
    candidate_doses,
    candidate_layers,
    deltas_at,
)
from steering.building.damage import measure_damage
from steering.building.evaluation import evaluate
from steering.building.grains_options import GrainsOptions
from steering.building.measuring import Measure, measure_by_margin, measure_by_metric, with_damage
from steering.building.memo import Memo, remembered
from steering.building.metrics import Metric
from steering.building.pairs import (
    LeftOut,
    Message,
    Pair,
    PairsFile,
    describe_left_out,
    leave_out_long,
    refuse_long_prompts,
    tokenise_pairs,
    tokenise_prompt,
)
from steering.building.progress import Progress, silent
from steering.building.questions import NeutralText, neutral_text
from steering.building.reporting import costs, headline, report, trials
from steering.errors import InvalidPairs, InvalidRequest
from steering.image_tokens import pieces
from steering.loading import LoadedModel
from steering.types import Tokens

FEWEST_PAIRS = 6
BUILD_PAIRS = 50
DEV_ITEMS = 24

Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """layers: candidate sets of blocks, doses: shares of the median norm; None: those that were worth trying.

    evidence: whether to measure, on held-out items, what the chosen setting does. tokens: those that are
    moved wherever dose, effect and damage are measured, and by requests.
    """

    method: str = "grains"
    grains: GrainsOptions = field(default_factory=GrainsOptions)
    layers: tuple[tuple[int, ...], ...] | None = None
    doses: tuple[float, ...] | None = None
    bound: DamageBound = field(default_factory=DamageBound)
    max_tokens: int = 48
    seed: int = 0
    evidence: bool = True
    tokens: Tokens = "all"


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts of the pairs: for the vectors, for the dose, and for evidence without test prompts."""

    build: tuple[Pair, ...]
    dev: tuple[Pair, ...]
    test: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """What effect is measured by: on dev items for the dose, on test items, if any, for the evidence."""

    metric: str
    direction: int
    dev: Measure
    test: Measure | None
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """deltas: layer -> float32 [hidden_size] at strength 1; the rest goes into manifest and report.

    pairs: how many the deltas come from. evidence is empty where there was nothing to test on.
    """

    deltas: dict[int, Tensor]
    pairs: int
    left_out: tuple[LeftOut, ...]
    parameters: dict[str, Any]
    calibration: dict[str, Any]
    evidence: dict[str, Any]
    report: dict[str, Any]


def build_vectors(
    loaded: LoadedModel,
    pairs: PairsFile,
    metric: Metric | None,
    test_prompts: Sequence[Conversation],
    options: BuildOptions = BuildOptions(),
    progress: Progress = silent,
    memo: Memo = Memo(),
    neutral: NeutralText | None = None,
) -> Built:
    """Return calibrated deltas with their evidence; the same inputs and seed give the same deltas.

    memo: keeps finished steps; it must be of the same model, pairs, metric, prompts and options. neutral:
    what damage is measured on; None: the package's own.

    With a metric, dose and effect are measured on generated answers, the effect on the test prompts;
    without one, by the margin between the answers of held-out pairs.
    Raises InvalidPairs for pairs that cannot be used or that no admissible dose makes work.
    """
    refuse_blind(loaded, options.tokens)
    candidates = settings(loaded, options)
    pairs = leave_out_long(loaded, pairs)
    refuse_overlap(pairs, test_prompts)
    refuse_long_prompts(loaded, test_prompts, options.max_tokens)
    split = split_pairs(pairs, options.seed, with_test=metric is None and options.evidence)
    build = tokenise_pairs(loaded, split.build)
    refuse_unseen([pair.prompt for pair in build], options.tokens)
    bench = make_bench(loaded, split, metric, test_prompts, options)
    bench = with_neutral_text(loaded, bench, neutral or neutral_text(), options.tokens)
    bench = with_memo(bench, memo)
    grains = at_tried_block(options.grains, candidates)
    directions = BUILDERS[options.method](loaded, split.build, grains, progress, memo)
    norms = median_norms(loaded, [pair.preferred for pair in build], options.tokens)
    found = calibrate(
        directions.vectors, norms, bench.dev, candidates, options.bound, progress, options.evidence
    )
    deltas = deltas_at(found.chosen.setting, directions.vectors, norms)
    evidence: dict[str, Any] = {}
    details: dict[str, Any] = {"calibration": trials(found)}
    if bench.test is not None and options.evidence:
        vectors = control_vectors(loaded, split.build, options.method, grains, progress)
        controls = {name: deltas_at(found.chosen.setting, each, norms) for name, each in vectors.items()}
        evaluation = evaluate(deltas, bench.test, options.seed, progress, controls=controls)
        evidence = headline(evaluation, bench.metric, bench.direction)
        asked = split.test if metric is None else ()
        details = report(evaluation, bench.metric, bench.direction, list(bench.prompts), found, asked)
    calibration = describe(found, norms, len(split.dev), bench.metric, options.bound)
    used = {"used": len(pairs.pairs), "left_out": [asdict(left) for left in pairs.left_out]}
    details = {"pairs": used, **details}
    if directions.attributions:
        details["attributions"] = directions.attributions
    return Built(deltas, len(build), pairs.left_out, directions.parameters, calibration, evidence, details)


def with_memo(bench: Bench, memo: Memo) -> Bench:
    test = remembered(bench.test, memo, "test") if bench.test is not None else None
    return replace(bench, dev=remembered(bench.dev, memo, "dev"), test=test)


def refuse_blind(loaded: LoadedModel, tokens: Tokens) -> None:
    """Raise InvalidRequest for a profile of some tokens of a model whose tokens are all of one kind."""
    if tokens != "all" and loaded.processor is None:
        raise InvalidRequest(
            f"a profile cannot move {tokens} tokens alone: {loaded.identity.id} takes no images, so that all "
            "its tokens are text"
        )


def refuse_unseen(prompts: Sequence[Sequence[int]], tokens: Tokens) -> None:
    """Raise InvalidPairs where there is nothing that the tokens could be of."""
    if tokens == "image" and not any(map(pieces, prompts)):
        raise InvalidPairs(
            "image tokens alone are to be moved, and there are none: give pairs or prompts with images"
        )


def refuse_overlap(pairs: PairsFile, test_prompts: Sequence[Conversation]) -> None:
    """Raise InvalidPairs if a held-out prompt is also a pair's prompt."""
    for prompt in test_prompts:
        line = next((pair.line for pair in pairs.pairs if pair.messages == prompt), None)
        if line is not None:
            raise InvalidPairs(
                f"the held-out prompt {prompt[-1]['content']!r} is also line {line} of the pairs; "
                "evidence needs prompts that nothing was built from"
            )


def split_pairs(pairs: PairsFile, seed: int, with_test: bool) -> Split:
    """Return the pairs, shuffled by the seed, in disjoint parts; at most BUILD_PAIRS build.

    Without a test among the pairs two thirds of them build, else half; of what is held out then, two thirds
    are the test.
    """
    count = len(pairs.pairs)
    if count < FEWEST_PAIRS:
        left_out = f"; left out: {describe_left_out(pairs.left_out)}" if pairs.left_out else ""
        raise InvalidPairs(
            f"{count} pairs are too few to build and calibrate on; {FEWEST_PAIRS} is the least{left_out}"
        )
    shuffled = random.Random(seed).sample(pairs.pairs, count)
    build = min(BUILD_PAIRS, count // 2 if with_test else 2 * count // 3)
    held_out = shuffled[build:]
    dev = min(DEV_ITEMS, len(held_out) // 3 if with_test else len(held_out))
    return Split(tuple(shuffled[:build]), tuple(held_out[:dev]), tuple(held_out[dev:]))


def make_bench(
    loaded: LoadedModel,
    split: Split,
    metric: Metric | None,
    test_prompts: Sequence[Conversation],
    options: BuildOptions,
) -> Bench:
    if metric is None:
        dev, test = tokenise_pairs(loaded, split.dev), tokenise_pairs(loaded, split.test)
        measures = [
            measure_by_margin(loaded, part, options.max_tokens, options.tokens) for part in (dev, test)
        ]
        return Bench("margin", 1, measures[0], measures[1], last_words([p.messages for p in split.test]))
    dev_measure, test_measure = [
        measure_by_metric(
            loaded,
            [tokenise_prompt(loaded, prompt) for prompt in prompts],
            metric,
            options.max_tokens,
            options.tokens,
        )
        for prompts in ([pair.messages for pair in split.dev], test_prompts)
    ]
    tested = test_measure if test_prompts else None
    return Bench(metric.name, metric.direction, dev_measure, tested, last_words(test_prompts))


def with_neutral_text(loaded: LoadedModel, bench: Bench, neutral: NeutralText, tokens: Tokens) -> Bench:
    """Return the bench whose measures tell the damage too: the dose's on a part of the neutral text."""
    dev = with_damage(bench.dev, measure_damage(loaded, neutral.portion(), tokens))
    damage = measure_damage(loaded, neutral, tokens)
    return replace(bench, dev=dev, test=with_damage(bench.test, damage) if bench.test is not None else None)


def last_words(conversations: Sequence[Conversation]) -> tuple[str, ...]:
    return tuple(messages[-1]["content"] for messages in conversations)


def settings(loaded: LoadedModel, options: BuildOptions) -> list[Setting]:
    """Return every candidate set of blocks at every dose."""
    count = len(loaded.blocks)
    layers = options.layers if options.layers is not None else candidate_layers(count, options.tokens)
    for layer in (layer for chosen in layers for layer in chosen):
        if not 0 <= layer < count:
            raise InvalidRequest(f"there is no block {layer}: the model has 0 to {count - 1}")
    if options.tokens == "image":
        refuse_unread(layers, count)
    return [
        Setting(chosen, dose)
        for chosen in layers
        for dose in (options.doses if options.doses is not None else candidate_doses(chosen))
    ]


def refuse_unread(layers: Sequence[tuple[int, ...]], count: int) -> None:
    """Raise InvalidRequest for image tokens that are moved where no later block reads them."""
    if (count - 1,) in layers:
        raise InvalidRequest(
            f"block {count - 1} is the model's last: no later block reads what it does to image tokens, so "
            f"that moving them alone there changes no answer; name earlier --layers, 0 to {count - 2}"
        )


def at_tried_block(grains: GrainsOptions, candidates: Sequence[Setting]) -> GrainsOptions:
    """Return the options, which score tokens at the middle one of the tried blocks unless they name one."""
    blocks = sorted({layer for setting in candidates for layer in setting.layers})
    return grains if grains.block is not None else replace(grains, block=blocks[(len(blocks) - 1) // 2])


def describe(
    found: Calibration, norms: Tensor, items: int, metric: str, bound: DamageBound
) -> dict[str, Any]:
    """Return how the dose was chosen, for the manifest."""
    chosen = found.chosen
    return {
        "dose": chosen.setting.dose,
        "median_norms": {str(layer): round(float(norms[layer]), 3) for layer in chosen.setting.layers},
        "metric": metric,
        "items": items,
        "effect": round(chosen.effect, 4),
        "log_probability": round(chosen.log_probability, 4),
        "distinct_2": round(chosen.distinct_2, 4),
        "loss": round(chosen.loss, 4),
        "accuracy": round(chosen.accuracy, 4),
        "unsteered": costs(found.unsteered),
        "bound": asdict(bound),
        "safe_strengths": list(found.safe_strengths) if found.safe_strengths else None,
        "settings_tried": len(found.trials),
    }
