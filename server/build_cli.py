"""The `grainserve build` command: from preference pairs to a published profile."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

from steering.building.building import BuildOptions, Built, build_vectors
from steering.building.calibration import DOSES
from steering.building.metrics import Metric, read_metric
from steering.building.pairs import PairsFile, read_pairs, read_prompts
from steering.building.progress import Progress
from steering.errors import InvalidRequest, SteeringError
from steering.loading import LoadedModel, load_model
from vector_store.local import default_root, open_store
from vector_store.manifest import NAME_PATTERN, Manifest, ModelRecord, PairsRecord
from vector_store.store import Profile

LIBRARIES = ("grainserve", "torch", "transformers")
INTERRUPTED = 130

Method = Literal["grains", "mean_difference"]


def build(
    pairs: Annotated[Path, typer.Argument(help="Preference pairs, JSONL in OpenAI's format.")],
    name: Annotated[str, typer.Option(help="The profile's name.")],
    model: Annotated[
        str | None, typer.Option(help="Model id or directory.", show_default="the embedded one")
    ] = None,
    method: Annotated[Method, typer.Option(help="How directions are found.")] = "grains",
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks to try: 9,12 one at a time; 10+13 together.", show_default="a few depths"),
    ] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(
            help="Dose to try, a share of the block's median norm; repeatable.",
            show_default=", ".join(map(str, DOSES)),
        ),
    ] = None,
    metric: Annotated[
        Path | None, typer.Option(help="What to measure in answers, JSON; none: the answers' margin.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Held-out prompts for the evidence, JSONL; needs --metric.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="What the profile does.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            envvar="GRAINSERVE_STORE", help="Directory of profiles.", show_default="the user's data directory"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Splits the pairs, draws random directions.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers that are measured.")] = 48,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="GRAINSERVE_CACHE_DIR",
            help="Directory for converted weights.",
            show_default="the user's cache",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Build a steering profile from preference pairs, measure it, and publish it."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    with explained(console):
        refuse_early(name, metric, test)
        options = BuildOptions(
            method, layers=parse_layers(layers), doses=parse_doses(dose), max_tokens=max_tokens, seed=seed
        )
        sources = read_sources(pairs, metric, test)
        loaded = load_model(model, cache_dir or user_cache_path("grainserve"), device=device)
        with shown(console) as progress:
            built = build_vectors(loaded, sources.pairs, sources.metric, sources.prompts, options, progress)
        words = description if description is not None else default_description(sources.metric)
        manifest = describe_profile(name, words, loaded, sources.pairs, options, built)
        report = json.dumps(built.report, indent=2, ensure_ascii=False).encode() + b"\n"
        profile = open_store(store or default_root()).publish(manifest, built.deltas, {"report.json": report})
        tell(console, profile, sources.pairs)


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a build, read and checked before the model is loaded."""

    pairs: PairsFile
    metric: Metric | None
    prompts: tuple[tuple[dict[str, str], ...], ...]


def read_sources(pairs: Path, metric: Path | None, test: Path | None) -> Sources:
    return Sources(
        read_pairs(pairs),
        read_metric(metric) if metric is not None else None,
        read_prompts(test) if test is not None else (),
    )


def refuse_early(name: str, metric: Path | None, test: Path | None) -> None:
    """Raise for what would otherwise come out after minutes of work."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"{name!r} cannot name a profile: lower-case letters, digits, '.', '_' and '-', "
            "64 at most, a letter or digit first"
        )
    if test is not None and metric is None:
        raise InvalidRequest("--test needs --metric: without a metric held-out pairs are the test")


def parse_layers(text: str | None) -> tuple[tuple[int, ...], ...] | None:
    """Return the candidates of "9,12,10+13": commas separate them, plus signs join blocks."""
    if text is None:
        return None
    try:
        return tuple(tuple(sorted({int(layer) for layer in part.split("+")})) for part in text.split(","))
    except ValueError as error:
        raise InvalidRequest(
            f"--layers {text!r} is not a list of blocks; say 9,12 for one at a time, 10+13 for both at once"
        ) from error


def parse_doses(doses: list[float] | None) -> tuple[float, ...]:
    for dose in doses or ():
        if not 0 < dose < math.inf:
            raise InvalidRequest(f"--dose {dose} must be above 0; strengths have signs, doses have none")
    return tuple(doses) if doses else DOSES


def default_description(metric: Metric | None) -> str:
    return metric.description if metric is not None else ""


def describe_profile(
    name: str, description: str, loaded: LoadedModel, pairs: PairsFile, options: BuildOptions, built: Built
) -> Manifest:
    return Manifest(
        name=name,
        description=description,
        model=ModelRecord(**asdict(loaded.identity)),
        layers=tuple(sorted(built.deltas)),
        method=options.method,
        parameters=built.parameters,
        pairs=PairsRecord(digest=pairs.digest, count=built.pairs),
        seed=options.seed,
        libraries=library_versions(),
        calibration=built.calibration,
        evidence=built.evidence,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def library_versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


@contextmanager
def explained(console: Console) -> Iterator[None]:
    """End with a message instead of a traceback: 1 for a mistake, 130 for Ctrl-C."""
    try:
        yield
    except SteeringError as error:
        console.print(f"error: {error.message}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print("interrupted; nothing was published")
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """Show one bar per stage, with the time that remains."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    tasks: dict[str, TaskID] = {}
    with ProgressBar(*columns, console=console) as bar:

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield advance


def tell(console: Console, profile: Profile, pairs: PairsFile) -> None:
    """Say what was published and whether it works."""
    if pairs.duplicates:
        console.print(f"left out duplicate pairs on lines {', '.join(map(str, pairs.duplicates))}")
    manifest = profile.manifest
    evidence = manifest.evidence
    if evidence:
        console.print(
            f"{evidence['metric']}: {evidence['unsteered']} unsteered, {evidence['steered']} steered, "
            f"effect {evidence['effect']}, random {evidence['random']}"
        )
        if not evidence["works"]:
            console.print("warning: the effect does not stand out from no steering or from random directions")
    console.print(f"published {manifest.name}@{manifest.version} in {profile.path}")
