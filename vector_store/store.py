"""What a store of profiles is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from steering.types import SteeringVectors
from vector_store.manifest import Manifest


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A verified profile version: its manifest, its vectors, and where it lies."""

    manifest: Manifest
    vectors: SteeringVectors
    path: Path


@dataclass(frozen=True, slots=True)
class ProfileEntry:
    """One line of a listing; problem says why a profile cannot be used at all (corrupt), else None.

    version is 0 where not even the versions can be listed.
    """

    name: str
    version: int
    manifest: Manifest | None
    problem: str | None


class VectorStore(Protocol):
    """The seam to where profiles lie; versions are 1, 2, 3, ... and immutable once published."""

    def get(self, name: str, version: int | None = None) -> Profile:
        """Return the version, or the newest.

        ProfileNotFound suggests the nearest name, ProfileCorrupt says why; an older version never stands in.
        """
        ...

    def entries(self) -> list[ProfileEntry]:
        """Return the newest version of every profile, by name; a corrupt one is listed with its problem."""
        ...

    def versions(self, name: str) -> list[int]:
        """Return the published versions in order; empty for an unknown name."""
        ...

    def publish(
        self, manifest: Manifest, deltas: Mapping[int, Tensor], attachments: Mapping[str, bytes], /
    ) -> Profile:
        """Store a new version atomically and return it; the manifest's version and digest are filled in.

        ProfileCorrupt if the profile would not pass its own checks, StoreNotWritable if it cannot be stored.
        """
        ...
