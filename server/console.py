"""How the commands that work for minutes show progress and end."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
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

from steering.building.progress import Progress
from steering.errors import InvalidRequest, SteeringError

INTERRUPTED = 130
A_WHILE = 60.0  # seconds after which a log wants a sign of life
COLUMNS = (
    TextColumn("{task.description:<12}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


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
    """Show one bar per stage, with the time that remains; in a log, a line at its ends and once a minute."""
    tasks: dict[str, TaskID] = {}
    told: dict[str, float] = {}
    with ProgressBar(*COLUMNS, console=console, disable=not console.is_terminal) as bar:

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)
            silent = time.monotonic() > told.get(stage, 0.0) + A_WHILE
            if not console.is_terminal and (silent or done in (0, total)):
                told[stage] = time.monotonic()
                console.print(f"{stage}: {done} of {total} done")

        yield advance


def refuse_unwritable(option: str, path: Path | None) -> None:
    """Find out before minutes of work whether their result could be written."""
    if path is None:
        return
    if path.is_dir():
        raise InvalidRequest(f"{option} {path} cannot be written: it is a directory; name a file in it")
    if not path.absolute().parent.is_dir():
        raise InvalidRequest(f"{option} {path} cannot be written: there is no directory {path.parent}")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise InvalidRequest(f"{option} {path} cannot be written: {error.strerror}") from error
