"""The `grainserve profiles` commands: list, show and verify the profiles of a store."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from server.cli_options import StoreOption
from steering.errors import SteeringError
from vector_store.places import default_root

if TYPE_CHECKING:
    from vector_store.local import LocalStore
    from vector_store.store import Profile, ProfileEntry

PIPED_WIDTH = 100_000
COLUMNS = ("name", "version", "method", "layers", "model", "description")

profiles_app = typer.Typer(
    help="Look at the profiles of a store.", no_args_is_help=True, rich_markup_mode=None
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@profiles_app.command("list")
def list_profiles(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the newest version of every profile."""
    entries = _opened(store).entries()
    if as_json:
        typer.echo(json.dumps([_entry_json(entry) for entry in entries], indent=2))
    elif not entries:
        typer.echo("no profiles", err=True)
    else:
        _console().print(_table(entries))


@profiles_app.command("show")
def show_profile(
    profile: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="Newest version if none is named.")
    ],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one profile's manifest: what was built, for which model, and how well it works."""
    name, version = parse_reference(profile)
    with _told():
        found = _opened(store).get(name, version)
    if as_json:
        typer.echo(json.dumps(found.manifest.model_dump(mode="json"), indent=2))
    elif sys.stdout.isatty():
        _console().print(_sheet(found))
    else:
        typer.echo("\n".join(f"{_plain(label):<12} {_plain(value)}" for label, value in _facts(found)))


@profiles_app.command("verify")
def verify_profiles(
    profiles: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[@VERSION]]...", help="All profiles if none is named.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Check every version of the named profiles, or of all; exit with 1 if any is bad."""
    opened = _opened(store)
    references = [parse_reference(profile) for profile in profiles or []]
    references = references or [(entry.name, None) for entry in opened.entries()]
    checks = [check for name, version in references for check in _checked(opened, name, version)]
    for label, problem in checks:
        typer.echo(f"ok   {label}" if problem is None else f"BAD  {label}: {_plain(problem)}")
    bad = sum(problem is not None for _, problem in checks)
    typer.echo(f"{len(checks)} checked, {bad} bad", err=True)
    raise typer.Exit(1 if bad else 0)


def _opened(store: Path | None) -> "LocalStore":
    if store is not None and not store.expanduser().is_dir():
        typer.echo(f"note: {store} is no directory; only the profiles that ship are seen", err=True)
    from vector_store.local import open_store  # torch loads slowly; --help should not

    return open_store(store or default_root())


@contextmanager
def _told() -> Iterator[None]:
    """End with the error's message and exit code 1."""
    try:
        yield
    except SteeringError as error:
        typer.echo(f"error: {_plain(error.message)}", err=True)
        raise typer.Exit(1) from error


def parse_reference(text: str) -> tuple[str, int | None]:
    """Return the name and the version of NAME[@VERSION]."""
    name, at, version = text.partition("@")
    if not at:
        return name, None
    from vector_store.names import is_version

    if not is_version(version):
        raise typer.BadParameter(f"{text!r}: after '@' comes a version, 1, 2, 3, ...")
    return name, int(version)


def _checked(store: "LocalStore", name: str, version: int | None) -> Iterator[tuple[str, str | None]]:
    """Yield each version's label and what is wrong with it."""
    try:
        versions: list[int | None] = [*store.versions(name)] if version is None else [version]
    except SteeringError:
        versions = []
    for each in versions or [None]:
        label = name if each is None else f"{name}@{each}"
        try:
            store.get(name, each)
        except SteeringError as error:
            yield label, error.message
        else:
            yield label, None


def _console() -> Console:
    """Return a console that prints text as it is, and cuts nothing when the output is piped."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)


def _table(entries: "Iterable[ProfileEntry]") -> Table:
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "version", "method"))
    for entry in entries:
        table.add_row(*map(_plain, _row(entry)))
    return table


def _row(entry: "ProfileEntry") -> tuple[str, ...]:
    manifest = entry.manifest
    version = str(entry.version) if entry.version else "?"
    if manifest is None:
        return (entry.name, version, "", "", "", f"PROBLEM: {entry.problem}")
    layers = _ranges(manifest.layers)
    return (entry.name, version, manifest.method, layers, manifest.model.id, manifest.description)


def _entry_json(entry: "ProfileEntry") -> dict[str, object]:
    manifest = None if entry.manifest is None else entry.manifest.model_dump(mode="json")
    return {"name": entry.name, "version": entry.version, "problem": entry.problem, "manifest": manifest}


def _sheet(profile: "Profile") -> Table:
    """Return the manifest as lines of label and value."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _facts(profile):
        table.add_row(_plain(label), _plain(value))
    return table


def _facts(profile: "Profile") -> Iterator[tuple[str, str]]:
    manifest = profile.manifest
    model = manifest.model
    yield "profile", f"{manifest.name}@{manifest.version}"
    if manifest.description:
        yield "description", manifest.description
    yield "model", f"{model.id} ({model.architecture}, {model.layers} layers of {model.hidden_size})"
    yield "fingerprint", model.fingerprint
    yield "method", manifest.method
    yield "operation", f"{manifest.operation} at {manifest.site}"
    yield "layers", _ranges(manifest.layers)
    yield "applies to", f"positions: {manifest.positions}, tokens: {manifest.tokens}"
    if manifest.pairs is not None:
        yield "pairs", f"{manifest.pairs.count}, SHA-256 {manifest.pairs.digest}"
    yield "seed", str(manifest.seed)
    for section in ("parameters", "calibration", "evidence", "libraries"):
        yield from _section(section, getattr(manifest, section))
    if manifest.created:
        yield "created", manifest.created
    yield "digest", manifest.digest
    yield "path", str(profile.path)


def _section(title: str, values: dict[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the values under the title, which stands before the first only."""
    for label, (key, value) in zip([title, *[""] * len(values)], values.items(), strict=False):
        yield label, f"{key}: {value if isinstance(value, str) else json.dumps(value)}"


def _ranges(layers: Iterable[int]) -> str:
    """Return ascending layers as text, neighbours joined: 3-5,9."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _plain(text: str) -> str:
    """Return the text without what would move the cursor or start a new line."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
