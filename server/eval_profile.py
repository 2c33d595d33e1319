"""What `grainserve eval` does: measure a published profile on data that it was not built on, and tell."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table

from server.console import explained, refuse_unwritable, shown
from server.judging import Judge, judge_strengths, judgement_rows, rates, read_template
from server.profiles_cli import PIPED_WIDTH
from steering.building.building import refuse_unseen
from steering.building.damage import measure_damage
from steering.building.evaluation import ENOUGH_DIRECTIONS, Evaluation, evaluate
from steering.building.measuring import Measure, measure_by_margin, measure_by_metric, with_damage
from steering.building.metrics import Metric, read_metric
from steering.building.pairs import (
    Message,
    PairsFile,
    leave_out_long,
    refuse_long_prompts,
    tokenise_pairs,
    tokenise_prompt,
)
from steering.building.progress import Progress
from steering.building.questions import NeutralText, neutral_text, read_neutral, read_questions
from steering.building.readers import read_pairs, read_prompts
from steering.building.reporting import report, shortcomings
from steering.embedded import EMBEDDED_ID
from steering.errors import InvalidPairs, InvalidRequest, ProfileIncompatible
from steering.loading import LoadedModel, load_model
from steering.types import Tokens
from vector_store.local import open_store
from vector_store.manifest import Manifest, incompatibility
from vector_store.places import default_root
from vector_store.store import Profile

HEADLINE_STRENGTHS = {-1.0, 1.0}

UNREADABLE = "warning: no reply of the judge was a number from 1 to 10; see --judge-prompt"


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """The judge's options as they were typed; prompt: the file of the judge's template."""

    url: str | None
    model: str | None
    prompt: Path | None
    api_key: str | None


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """The command's options as they were typed; see server.eval_cli."""

    name: str
    version: int | None
    pairs: Path | None
    metric: Path | None
    test: Path | None
    questions: Path | None
    neutral: Path | None
    strengths: str
    random: int
    output: Path | None
    judge: JudgeRequest
    model: str | None
    store: Path | None
    seed: int
    max_tokens: int
    cache_dir: Path | None
    device: str


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What the profile is measured on: pairs, or a metric with prompts."""

    pairs: PairsFile | None
    metric: Metric | None
    prompts: tuple[tuple[Message, ...], ...]
    neutral: NeutralText


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """prompts: what was asked, by item; judged: a row per strength, empty without a judge."""

    evaluation: Evaluation
    prompts: list[str]
    judged: list[dict[str, Any]]


def run_eval(request: EvalRequest) -> None:
    """Print the evaluation and write it as JSON; a mistake ends the command with its reason."""
    console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
    with explained(console, "nothing was written"):
        refuse_few_directions(request.random)
        strengths, judge = parse_strengths(request.strengths), read_judge(request.judge)
        refuse_unwritable("--output", request.output)
        profile = open_store(request.store or default_root()).get(request.name, request.version)
        refuse_unnamed_model(profile.manifest, request.model)
        held_out = read_held_out(request, profile.manifest)
        if judge is not None:
            console.print("asking the judge for one rating first")
            if not rates(judge):
                console.print(UNREADABLE)
        cache_dir = request.cache_dir or user_cache_path("grainserve")
        loaded = load_model(request.model, cache_dir, device=request.device)
        refuse_unfit(profile.manifest, loaded)
        with shown(console) as progress:
            found = measure_profile(request, profile, loaded, held_out, strengths, judge, progress)
        if found.judged and all(row["rating"] is None for row in found.judged):
            console.print(UNREADABLE)
        record = describe_evaluation(profile, request, held_out, found)
        printed = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, markup=False, highlight=False)
        printed.print(*tables(record), sep="\n")
        if request.output is not None:
            text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
            request.output.write_text(text + "\n", encoding="utf-8")


def refuse_few_directions(count: int) -> None:
    if count < ENOUGH_DIRECTIONS:
        raise InvalidRequest(
            f"--random {count}: being stronger than so few random directions may be chance; "
            f"{ENOUGH_DIRECTIONS} are the least"
        )


def refuse_unnamed_model(manifest: Manifest, model: str | None) -> None:
    """Raise, before a model is loaded, for a profile of another one than the default."""
    if model is None and manifest.model.id != EMBEDDED_ID:
        raise ProfileIncompatible(
            f"profile {manifest.name!r} was built for {manifest.model.id} ({manifest.model.architecture}); "
            f"without --model it would be measured on {EMBEDDED_ID}: name its model's directory or hub id "
            "with --model"
        )


def parse_strengths(text: str) -> list[float]:
    """Return the strengths of "-1,0.5,2" in order; 1 and -1, which headlines state, are always among them."""
    try:
        found = {float(strength) for strength in text.split(",")}
    except ValueError as error:
        raise InvalidRequest(f"--strengths {text!r} is not a list of numbers such as -1,0.5,1,2") from error
    if not all(abs(strength) < float("inf") for strength in found):
        raise InvalidRequest(f"--strengths {text!r}: a strength is a finite number")
    return sorted((found | HEADLINE_STRENGTHS) - {0.0})


def read_judge(request: JudgeRequest) -> Judge | None:
    if request.url is None and request.model is None and request.prompt is None:
        return None
    if request.url is None or request.model is None or request.prompt is None:
        raise InvalidRequest("a judge needs all three of --judge-url, --judge-model and --judge-prompt")
    return Judge(request.url, request.model, read_template(request.prompt), request.api_key)


def read_held_out(request: EvalRequest, manifest: Manifest) -> HeldOut:
    neutral = neutral_text()
    if None not in (request.questions, request.neutral):
        raise InvalidRequest("--questions are part of what --neutral names; give one of them")
    if request.questions is not None:
        neutral = NeutralText(neutral.passages, read_questions(request.questions))
    if request.neutral is not None:
        neutral = read_neutral(request.neutral)
    if request.pairs is not None and request.metric is None and request.test is None:
        pairs = read_pairs(request.pairs)
        refuse_known(pairs, manifest, request.pairs)
        return HeldOut(pairs, None, (), neutral)
    if request.pairs is None and request.metric is not None and request.test is not None:
        return HeldOut(None, read_metric(request.metric), read_prompts(request.test), neutral)
    raise InvalidRequest("an evaluation needs either --pairs, or --metric with --test")


def refuse_known(pairs: PairsFile, manifest: Manifest, path: Path) -> None:
    if manifest.pairs is not None and manifest.pairs.digest == pairs.digest:
        raise InvalidPairs(
            f"'{manifest.name}@{manifest.version}' was built on {path}; evidence needs pairs that it was "
            "not built on"
        )


def refuse_unfit(manifest: Manifest, loaded: LoadedModel) -> None:
    """Raise for a profile of another model, or one that steers only some positions."""
    reason = incompatibility(manifest, loaded.identity)
    if reason is not None:
        raise ProfileIncompatible(f"profile {manifest.name!r} does not fit: {reason}")
    if manifest.positions != "all":
        raise InvalidRequest(
            f"profile {manifest.name!r} steers {manifest.positions} positions; only profiles that steer all "
            "can be evaluated"
        )


def measure_profile(
    request: EvalRequest,
    profile: Profile,
    loaded: LoadedModel,
    held_out: HeldOut,
    strengths: Sequence[float],
    judge: Judge | None,
    progress: Progress,
) -> Evaluated:
    tokens = profile.manifest.tokens
    measure, prompts = held_out_measure(loaded, held_out, request.max_tokens, tokens)
    measure = with_damage(measure, measure_damage(loaded, held_out.neutral, tokens))
    deltas = profile.vectors.deltas
    found = evaluate(deltas, measure, request.seed, progress, request.random, strengths)
    judgements = judge_strengths(judge, prompts, found, progress) if judge is not None else {}
    return Evaluated(found, prompts, judgement_rows(judgements, request.seed))


def held_out_measure(
    loaded: LoadedModel, held_out: HeldOut, max_tokens: int, tokens: Tokens
) -> tuple[Measure, list[str]]:
    """Return the measure and each item's prompt; tokens: those that the profile moves."""
    if held_out.metric is not None:
        refuse_long_prompts(loaded, held_out.prompts, max_tokens)
        asked = [tokenise_prompt(loaded, prompt) for prompt in held_out.prompts]
        refuse_unseen(asked, tokens)
        measure = measure_by_metric(loaded, asked, held_out.metric, max_tokens, tokens)
        return measure, [prompt[-1]["content"] for prompt in held_out.prompts]
    assert held_out.pairs is not None
    pairs = leave_out_long(loaded, held_out.pairs).pairs
    if not pairs:
        raise InvalidPairs(f"no pair fits the model's context of {loaded.context_length} tokens")
    tokenised = tokenise_pairs(loaded, pairs)
    refuse_unseen([pair.prompt for pair in tokenised], tokens)
    measure = measure_by_margin(loaded, tokenised, max_tokens, tokens)
    return measure, [pair.messages[-1]["content"] for pair in pairs]


def describe_evaluation(
    profile: Profile, request: EvalRequest, held_out: HeldOut, found: Evaluated
) -> dict[str, Any]:
    """Return all that was measured, in the shape of a build's report.json, and on what."""
    metric = held_out.metric
    name, direction = (metric.name, metric.direction) if metric is not None else ("margin", 1)
    return {
        "profile": profile.manifest.name,
        "version": profile.manifest.version,
        "digest": profile.manifest.digest,
        "model": profile.manifest.model.id,
        "tokens": profile.manifest.tokens,
        "items_file": str(request.pairs or request.test),
        "questions": len(held_out.neutral.questions),
        "seed": request.seed,
        **report(found.evaluation, name, direction, found.prompts),
        "judge": found.judged,
    }


def tables(record: dict[str, Any]) -> list[Table | str]:
    """Return what a reader sees: effect and damage at each strength, the controls, the judge's ratings."""
    head, random = record["headline"], record["headline"]["random"]
    controls = (
        f"{random['directions']} random directions at strength 1: mean {random['mean']}, strongest "
        f"{random['strongest']}; {'; '.join(shortcomings(head)) or 'works'}"
    )
    shown: list[Table | str] = [strength_table(record), controls]
    return [*shown, judge_table(record["judge"])] if record["judge"] else shown


def strength_table(record: dict[str, Any]) -> Table:
    head = record["headline"]
    title = f"{record['profile']}@{record['version']}: {head['metric']}, n = {head['items']}"
    table = Table(title=title, title_justify="left")
    columns = ["score", "loss", "accuracy", "repetition", "log_probability", "chosen_per_token"]
    columns = [column for column in columns if column in record["dose_response"][0]]
    for column in ("strength", "effect (95%)", *columns):
        table.add_column(column.replace("_", " "), justify="right")
    for row in record["dose_response"]:
        table.add_row(f"{row['strength']:g}", effect_text(row), *(f"{row[c]:.3f}" for c in columns))
    return table


def judge_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="judge's rating, 1 to 10", title_justify="left")
    for column in ("strength", "effect (95%)", "rating", "judged", "unreadable"):
        table.add_column(column, justify="right")
    for row in rows:
        rating = "-" if row["rating"] is None else f"{row['rating']:.2f}"
        counts = str(row["judged"]), str(row["unreadable"])
        table.add_row(f"{row['strength']:g}", effect_text(row), rating, *counts)
    return table


def effect_text(row: dict[str, Any]) -> str:
    effect = row.get("effect")
    return "" if effect is None else f"{effect['mean']:+.3f} [{effect['low']:+.3f}, {effect['high']:+.3f}]"
