"""What `grainserve build` does: read, build, show progress, publish, tell."""

import json
import shlex
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from platformdirs import user_cache_path
from rich.console import Console

from server.build_request import (
    BuildRequest,
    read_options,
    refuse_closed,
    refuse_description,
    refuse_early,
)
from server.console import explained, shown
from steering.building.building import BuildOptions, Built, build_vectors
from steering.building.grains_options import READINGS_OF_PROMPTS
from steering.building.memo import Memo
from steering.building.metrics import Metric, read_metric
from steering.building.pairs import LeftOut, Message, PairsFile, describe_left_out
from steering.building.pictured import urls_of
from steering.building.pictures import pictures
from steering.building.questions import NeutralText, read_neutral
from steering.building.readers import read_pairs, read_prompts
from steering.building.report_page import report_page
from steering.building.reporting import shortcomings
from steering.loading import LoadedModel, load_model
from vector_store.local import open_store
from vector_store.manifest import Manifest, ModelRecord, PairsRecord
from vector_store.places import default_root
from vector_store.store import Profile

# Items to choose a dose on below which a build warns.
ENOUGH_DEV_ITEMS = 10
LIBRARIES = ("grainserve", "torch", "transformers")


def run_build(request: BuildRequest) -> None:
    """Publish a profile and tell about it on standard error; a mistake ends the command with its reason."""
    console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
    with explained(console, "nothing was published; the same command goes on from here"):
        refuse_early(request)
        refuse_closed(request.store or default_root(), request.name)
        options, sources = read_options(request), read_sources(request)
        refuse_description(describe(request, sources.metric))
        advise(console, options, sources.pairs)
        cache_dir = request.cache_dir or user_cache_path("grainserve")
        loaded = load_model(request.model, cache_dir, device=request.device)
        kept = cache_dir / "builds" / build_key(request, sources, options, loaded)
        memo = Memo(kept)
        if memo.count():
            console.print(f"this build was begun before: {memo.count()} finished steps are taken from {kept}")
        with shown(console) as progress:
            built = build_vectors(
                loaded,
                sources.pairs,
                sources.metric,
                sources.prompts,
                options,
                progress,
                memo,
                sources.neutral,
            )
        manifest = describe_profile(request, loaded, sources, options, built)
        files = attachments(manifest, built.report)
        store = open_store(request.store or default_root())
        tell(console, store.publish(manifest, built.deltas, files), built.left_out, request)
        shutil.rmtree(kept, ignore_errors=True)


def advise(console: Console, options: BuildOptions, pairs: PairsFile) -> None:
    """Say that images are there whose pieces are not among what is scored and taken out."""
    reading = options.grains.reading
    pictured = any(urls_of(pair.messages) for pair in pairs.pairs)
    if options.method == "grains" and pictured and reading not in READINGS_OF_PROMPTS:
        console.print(
            f"the pairs have images, and --reading {reading} takes out tokens of the answers alone; pieces "
            f"of images are scored by --reading {' or '.join(READINGS_OF_PROMPTS[:2])}"
        )


def build_key(request: BuildRequest, sources: "Sources", options: BuildOptions, loaded: LoadedModel) -> str:
    """Return what names the finished steps of this very build, and of no other."""
    files = (request.metric, request.test, request.neutral)
    contents = [sha256(path.read_bytes()).hexdigest() if path is not None else "" for path in files]
    versions = sorted(library_versions().items())
    read = [sources.pairs.digest, *contents]
    told = (loaded.identity.fingerprint, str(loaded.model.dtype), read, repr(options), versions)
    return sha256(repr(told).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a build, read and checked before the model is loaded."""

    pairs: PairsFile
    metric: Metric | None
    prompts: tuple[tuple[Message, ...], ...]
    neutral: NeutralText | None


def read_sources(request: BuildRequest) -> Sources:
    return Sources(
        read_pairs(request.pairs),
        read_metric(request.metric) if request.metric is not None else None,
        read_prompts(request.test) if request.test is not None else (),
        read_neutral(request.neutral) if request.neutral is not None else None,
    )


def describe_profile(
    request: BuildRequest, loaded: LoadedModel, sources: Sources, options: BuildOptions, built: Built
) -> Manifest:
    return Manifest(
        name=request.name,
        description=describe(request, sources.metric),
        model=ModelRecord(**asdict(loaded.identity)),
        layers=tuple(sorted(built.deltas)),
        tokens=options.tokens,
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


def tell(console: Console, profile: Profile, left_out: tuple[LeftOut, ...], request: BuildRequest) -> None:
    """Say what was published and whether it works."""
    if left_out:
        console.print(f"pairs left out: {describe_left_out(left_out)}")
    manifest = profile.manifest
    evidence = manifest.evidence
    if evidence:
        console.print(summary(evidence))
        for warning in shortcomings(evidence):
            console.print(f"warning: {warning}")
    else:
        console.print(
            f"nothing says yet that it works: `{eval_of(request)} --pairs FILE` measures it, or "
            "`--metric FILE --test FILE`, on what it was not built on"
        )
    chosen = manifest.calibration
    items = chosen["items"]
    if isinstance(items, int) and items < ENOUGH_DEV_ITEMS:
        console.print(
            f"warning: block and dose were chosen on {items} items, which chance moves much; give more pairs"
        )
    effect = chosen["effect"]
    if isinstance(effect, float) and effect <= 0:
        console.print(
            f"warning: on the {items} items that a dose is chosen on, the one that was named has no effect "
            f"towards the behaviour: {effect:+g}; try other --layers or another --dose"
        )
    blocks = ", ".join(map(str, manifest.layers))
    moved = "" if manifest.tokens == "all" else f", for {manifest.tokens} tokens alone"
    console.print(f"strength 1 is a dose of {chosen['dose']:g} of the median norm at block {blocks}{moved}")
    console.print(f"published {manifest.name}@{manifest.version} in {profile.path}")
    console.print(f"the report: {profile.path / 'report.html'}")


def eval_of(request: BuildRequest) -> str:
    """Return the command that measures what the request built, where it was built."""
    places = {"--model": request.model, "--store": request.store}
    options = [f"{option} {shlex.quote(str(place))}" for option, place in places.items() if place is not None]
    return " ".join(["grainserve eval", request.name, *options])


def summary(evidence: dict[str, Any]) -> str:
    effect, random = evidence["effect"], evidence["random"]
    return (
        f"{evidence['metric']} on {evidence['items']} held-out items: {evidence['unsteered']} unsteered, "
        f"{evidence['steered']} at strength 1 (difference {effect['mean']:+}, 95% {effect['low']} to "
        f"{effect['high']}); the strongest of {random['directions']} random directions {random['strongest']}"
    )
