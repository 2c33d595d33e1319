"""The options of `grainserve build`: what was typed, checked before minutes of work, and what it means."""

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steering.building.building import BuildOptions
from steering.building.grains_options import PRESETS, GrainsOptions
from steering.errors import InvalidRequest, StoreNotWritable
from steering.types import Tokens
from vector_store.manifest import MOST_DESCRIPTION, NAME_PATTERN

# What only attributions by gradients know.
PATH_OPTIONS = ("steps", "tolerance", "most_steps")
# What bounds memory, whatever the method.
ALWAYS_USED = {"batch_tokens"}
# Options whose name is not their field's.
OPTION_NAMES = {"method": "attribution"}
# At that dose the steering is as long as what it steers.
MOST_DOSE = 1.0


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
    neutral: Path | None
    description: str | None
    store: Path | None
    steer: Tokens
    seed: int
    max_tokens: int
    cache_dir: Path | None
    device: str
    evidence: bool
    preset: str
    grains: dict[str, Any]
    attribution: dict[str, Any]


def read_options(request: BuildRequest) -> BuildOptions:
    return BuildOptions(
        request.method,
        grains_options(request),
        layers=parse_layers(request.layers),
        doses=parse_doses(request.doses),
        max_tokens=request.max_tokens,
        seed=request.seed,
        evidence=request.evidence,
        tokens=request.steer,
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
    """Raise for what would otherwise come out after minutes of work, or never."""
    if not re.fullmatch(NAME_PATTERN, request.name):
        raise InvalidRequest(
            f"{request.name!r} cannot name a profile: lower-case letters, digits, '.', '_' and '-', "
            "64 at most, a letter or digit first"
        )
    if request.test is not None and request.metric is None:
        raise InvalidRequest("--test needs --metric: without a metric held-out pairs are the test")
    unused = sorted(given({**request.grains, **request.attribution}).keys() - ALWAYS_USED)
    if request.method != "grains" and (unused or request.preset != "default"):
        option = OPTION_NAMES.get(unused[0], unused[0].replace("_", "-")) if unused else "preset"
        raise InvalidRequest(f"--{option} is about GrAInS, and --method {request.method} has no use for it")


def refuse_description(description: object) -> None:
    if not isinstance(description, str) or len(description) > MOST_DESCRIPTION:
        raise InvalidRequest(f"the description must be a text of at most {MOST_DESCRIPTION} characters")


def parse_layers(text: str | None) -> tuple[tuple[int, ...], ...] | None:
    """Return the candidates of "9,12,10+13": commas separate them, plus signs join blocks."""
    if text is None:
        return None
    try:
        found = tuple(tuple(sorted(int(layer) for layer in part.split("+"))) for part in text.split(","))
    except ValueError as error:
        raise InvalidRequest(
            f"--layers {text!r} is not a list of blocks; say 9,12 for one at a time, 10+13 for both at once"
        ) from error
    if any(len(set(layers)) < len(layers) for layers in found):
        raise InvalidRequest(f"--layers {text!r} names a block twice; a block is steered once, by its dose")
    return found


def parse_doses(doses: tuple[float, ...]) -> tuple[float, ...] | None:
    for dose in doses:
        if not 0 < dose <= MOST_DOSE:
            raise InvalidRequest(
                f"--dose {dose:g} must be above 0 and at most {MOST_DOSE:g}: it is a share of the block's "
                "median norm, around 0.1; strengths have signs, doses have none"
            )
    return doses or None


def refuse_closed(root: Path, name: str) -> None:
    """Find out before minutes of work whether their result could be stored."""
    home = root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
        if home.is_symlink() or (home.exists() and not home.is_dir()):
            raise StoreNotWritable(f"{home} is no directory; remove it, or take another --name")
    except OSError as error:
        raise StoreNotWritable(
            f"no profile can be stored in {root}: {error.strerror}; name another --store"
        ) from error
