"""What `grainserve build` does: read, build, show progress, publish, tell."""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
from steering.building.evaluation import ENOUGH_ITEMS
from steering.building.grains_options import PRESETS, GrainsOptions
from steering.building.memo import Memo
from steering.building.metrics import Metric, read_metric
from steering.building.pairs import LeftOut, PairsFile, describe_left_out
from steering.building.pictures import pictures
from steering.building.progress import Progress
from steering.building.readers import read_pairs, read_prompts
from steering.building.report_page import report_page
from steering.errors import InvalidRequest, SteeringError, StoreNotWritable
from steering.loading import LoadedModel, load_model
from vector_store.local import open_store
from vector_store.manifest import MOST_DESCRIPTION, NAME_PATTERN, Manifest, ModelRecord, PairsRecord
from vector_store.places import default_root
from vector_store.store import Profile

LIBRARIES = ("grainserve", "torch", "transformers")
INTERRUPTED = 130
# What only attributions by gradients know.
PATH_OPTIONS = ("steps", "tolerance", "most_steps")
COLUMNS = (
    TextColumn("{task.description:<12}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The command's options as they were typed; see server.build_cli."""

    pairs: Path
    name: str
    model: str | None
    method: str
    layers: str | None
    doses: tuple[float, ...]
    metric: Path | None
    test: Path | None
    description: str | None
    store: Path | None
    seed: int
    max_tokens: int
    cache_dir: Path | None
    device: str
    evidence: bool
    preset: str
    grains: dict[str, Any]
    attribution: dict[str, Any]


def run_build(request: BuildRequest) -> None:
    """Publish a profile and tell about it on standard error; a mistake ends the command with its reason."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    with explained(console, "nothing was published; the same command goes on from here"):
        refuse_early(request)
        refuse_closed(request.store or default_root())
        options, sources = read_options(request), read_sources(request)
        refuse_description(describe(request, sources.metric))
        cache_dir = request.cache_dir or user_cache_path("grainserve")
        loaded = load_model(request.model, cache_dir, device=request.device)
        kept = cache_dir / "builds" / build_key(request, options, loaded)
        with shown(console) as progress:
            built = build_vectors(
                loaded, sources.pairs, sources.metric, sources.prompts, options, progress, Memo(kept)
            )
        manifest = describe_profile(request, loaded, sources, options, built)
        files = attachments(manifest, built.report)
        store = open_store(request.store or default_root())
        tell(console, store.publish(manifest, built.deltas, files), built.left_out)
        shutil.rmtree(kept, ignore_errors=True)


def build_key(request: BuildRequest, options: BuildOptions, loaded: LoadedModel) -> str:
    """Return what names the finished steps of this very build, and of no other."""
    files = (request.pairs, request.metric, request.test)
    contents = [sha256(path.read_bytes()).hexdigest() if path is not None else "" for path in files]
    versions = sorted(library_versions().items())
    told = (loaded.identity.fingerprint, str(loaded.model.dtype), contents, repr(options), versions)
    return sha256(repr(told).encode()).hexdigest()[:32]


def refuse_closed(root: Path) -> None:
    """Find out before minutes of work whether their result could be stored."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise StoreNotWritable(
            f"no profile can be stored in {root}: {error.strerror}; name another --store"
        ) from error


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a build, read and checked before the model is loaded."""

    pairs: PairsFile
    metric: Metric | None
    prompts: tuple[tuple[dict[str, str], ...], ...]


def read_sources(request: BuildRequest) -> Sources:
    return Sources(
        read_pairs(request.pairs),
        read_metric(request.metric) if request.metric is not None else None,
        read_prompts(request.test) if request.test is not None else (),
    )


def read_options(request: BuildRequest) -> BuildOptions:
    return BuildOptions(
        request.method,
        grains_options(request),
        layers=parse_layers(request.layers),
        doses=parse_doses(request.doses),
        max_tokens=request.max_tokens,
        seed=request.seed,
        evidence=request.evidence,
    )


def grains_options(request: BuildRequest) -> GrainsOptions:
    """Return the preset with what the command line says otherwise."""
    options = replace(PRESETS[request.preset], seed=request.seed, **given(request.grains))
    asked = given(request.attribution)
    options = replace(options, attribution=replace(options.attribution, **asked))
    unused = [name for name in PATH_OPTIONS if name in asked]
    if unused and options.attribution.method == "ablation":
        raise InvalidRequest(
            f"--{unused[0].replace('_', '-')} is about gradients, which single ablations take none of; "
            "add --attribution integrated"
        )
    return options


def given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def refuse_early(request: BuildRequest) -> None:
    """Raise for what would otherwise come out after minutes of work."""
    if not re.fullmatch(NAME_PATTERN, request.name):
        raise InvalidRequest(
            f"{request.name!r} cannot name a profile: lower-case letters, digits, '.', '_' and '-', "
            "64 at most, a letter or digit first"
        )
    if request.test is not None and request.metric is None:
        raise InvalidRequest("--test needs --metric: without a metric held-out pairs are the test")


def refuse_description(description: object) -> None:
    if not isinstance(description, str) or len(description) > MOST_DESCRIPTION:
        raise InvalidRequest(f"the description must be a text of at most {MOST_DESCRIPTION} characters")


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


def parse_doses(doses: tuple[float, ...]) -> tuple[float, ...]:
    for dose in doses:
        if not 0 < dose < math.inf:
            raise InvalidRequest(f"--dose {dose} must be above 0; strengths have signs, doses have none")
    return doses or DOSES


def describe_profile(
    request: BuildRequest, loaded: LoadedModel, sources: Sources, options: BuildOptions, built: Built
) -> Manifest:
    return Manifest(
        name=request.name,
        description=describe(request, sources.metric),
        model=ModelRecord(**asdict(loaded.identity)),
        layers=tuple(sorted(built.deltas)),
        method=options.method,
        parameters=built.parameters,
        pairs=PairsRecord(digest=sources.pairs.digest, count=built.pairs),
        seed=options.seed,
        libraries=library_versions(),
        calibration=built.calibration,
        evidence=built.evidence,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def attachments(manifest: Manifest, report: dict[str, Any]) -> dict[str, bytes]:
    """Return file name -> content of the report: as JSON, as pictures, and as a page."""
    described = manifest.model_dump(mode="json")
    drawn = pictures(report, described["calibration"].get("items"))
    return {
        "report.json": json.dumps(report, indent=2, ensure_ascii=False).encode() + b"\n",
        "report.html": report_page(described, report, drawn).encode(),
        **drawn,
    }


def describe(request: BuildRequest, metric: Metric | None) -> str:
    if request.description is not None:
        return request.description
    return metric.description if metric is not None else ""


def library_versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


@contextmanager
def explained(console: Console, interrupted: str) -> Iterator[None]:
    """End with a message instead of a traceback: 1 for a mistake, 130 for Ctrl-C, with what to know then."""
    try:
        yield
    except SteeringError as error:
        console.print(f"error: {error.message}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print(f"interrupted; {interrupted}")
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """Show one bar per stage, with the time that remains; in a log, one line per finished stage."""
    tasks: dict[str, TaskID] = {}
    with ProgressBar(*COLUMNS, console=console, disable=not console.is_terminal) as bar:

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)
            if done == total and not console.is_terminal:
                console.print(f"{stage}: {total} done")

        yield advance


def tell(console: Console, profile: Profile, left_out: tuple[LeftOut, ...]) -> None:
    """Say what was published and whether it works."""
    if left_out:
        console.print(f"pairs left out: {describe_left_out(left_out)}")
    manifest = profile.manifest
    evidence = manifest.evidence
    if evidence:
        console.print(summary(evidence))
        for warning in warnings(evidence):
            console.print(f"warning: {warning}")
    else:
        console.print(f"nothing says yet that it works: `grainserve eval {manifest.name}` measures it")
    chosen = manifest.calibration
    blocks = ", ".join(map(str, manifest.layers))
    console.print(f"strength 1 is a dose of {chosen['dose']:g} of the median norm at block {blocks}")
    console.print(f"published {manifest.name}@{manifest.version} in {profile.path}")
    console.print(f"the report: {profile.path / 'report.html'}")


def warnings(evidence: dict[str, Any]) -> Iterator[str]:
    """Yield why the evidence does not show that the profile works."""
    items, shown = evidence["items"], evidence["effect"]["low"] > 0
    if items < ENOUGH_ITEMS:
        yield (
            f"{items} held-out items are too few for evidence, {ENOUGH_ITEMS} are the least; give more "
            "pairs, or prompts of your own with --metric and --test"
        )
    if not shown:
        yield "the interval of the effect holds zero: no effect was shown"
    elif items >= ENOUGH_ITEMS and not evidence["works"]:
        yield "a random direction of the same length did as much"


def summary(evidence: dict[str, Any]) -> str:
    effect, random = evidence["effect"], evidence["random"]
    return (
        f"{evidence['metric']} on {evidence['items']} held-out items: {evidence['unsteered']} unsteered, "
        f"{evidence['steered']} at strength 1 (difference {effect['mean']:+}, 95% {effect['low']} to "
        f"{effect['high']}); the strongest of {random['directions']} random directions {random['strongest']}"
    )
