"""Publish a profile version: lock, stage beside the target, make durable, rename.

Until the rename nothing of the new version is visible; after it everything is. What a crash leaves behind
is a hidden directory that no reader looks at, and that the next publication removes.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from filelock import FileLock
from torch import Tensor

from steering.errors import ProfileCorrupt, StoreNotWritable
from vector_store import artifact
from vector_store.manifest import Manifest
from vector_store.names import is_name, is_version, quoted
from vector_store.store import Profile

STAGING = ".tmp-"
LOCK = ".lock"
PATIENCE_SECONDS = 60.0


def publish(
    root: Path,
    manifest: Manifest,
    deltas: Mapping[int, Tensor],
    attachments: Mapping[str, bytes],
    next_version: Callable[[], int],
) -> Profile:
    """Return the new version, durable under root; next_version is asked while the lock is held."""
    if not is_name(manifest.name):
        raise ProfileCorrupt(f"a profile cannot be named {quoted(manifest.name)}; nothing was stored")
    home = root / manifest.name
    with _explained(root), _locked(root):
        _sweep(root)
        version = next_version()
        if not is_version(str(version)):
            raise StoreNotWritable(
                f"there is no version after {version - 1}; remove that one, or take another name"
            )
        with _staged(home) as staging:
            artifact.write(staging, manifest.model_copy(update={"version": version}), deltas, attachments)
            profile = artifact.read_as(staging, manifest.name, version)
            staging.rename(home / str(version))
        artifact.sync_directory(home)
        artifact.sync_directory(root)
    return replace(profile, path=home / str(version))


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreNotWritable(
            f"cannot publish into {error.filename or root}: {error.strerror or error}; "
            "make it a directory that this user can write and that has space, or choose another"
        ) from error


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the store's lock, which the system frees if this process dies."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / LOCK, timeout=PATIENCE_SECONDS):
        yield


@contextmanager
def _staged(home: Path) -> Iterator[Path]:
    """Make a hidden directory in home; gone at the end, unless it was renamed."""
    if home.is_symlink():
        raise StoreNotWritable(f"cannot publish into {home}: it is a symbolic link; make it a directory")
    home.mkdir(exist_ok=True)
    staging = home / f"{STAGING}{uuid4().hex}"
    staging.mkdir()
    try:
        yield staging
    finally:
        _remove(staging)


def _sweep(root: Path) -> None:
    """Remove what crashed publications left; whoever holds the lock is the only publisher."""
    for leftover in root.glob(f"*/{STAGING}*"):
        if not leftover.parent.is_symlink():
            _remove(leftover)


def _remove(staging: Path) -> None:
    """Remove the staging directory, and its parent if no version lies there."""
    shutil.rmtree(staging, ignore_errors=True)
    with suppress(OSError):
        staging.parent.rmdir()
