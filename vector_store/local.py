"""A store in directories: `<root>/<name>/<version>/`, looked at each time, so new versions show at once."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from steering.errors import ProfileCorrupt
from vector_store.manifest import Manifest
from vector_store.names import is_name, is_version, unknown_profile, unknown_version
from vector_store.places import SHIPPED
from vector_store.publishing import publish
from vector_store.store import Profile, ProfileEntry
from vector_store.verified import VerifiedProfiles

CACHE_BYTES = 256 << 20

_logger = logging.getLogger(__name__)


def open_store(root: Path) -> "LocalStore":
    """Return the store in root, together with the profiles that ship inside this package."""
    store = LocalStore(root, [SHIPPED])
    _warn_if_closed(store.root)
    return store


class LocalStore:
    """The profiles in root and in the shipped directories; publishes into root. Thread-safe.

    A version in root hides the same version that ships. A directory that is missing or closed is empty.
    """

    def __init__(self, root: Path, shipped: Sequence[Path] = (), *, cache_bytes: int = CACHE_BYTES) -> None:
        self.root = root.expanduser().absolute()
        self._places = (self.root, *(place.absolute() for place in shipped))
        self._verified = VerifiedProfiles(cache_bytes)

    def get(self, name: str, version: int | None = None) -> Profile:
        """Return the version, or the newest, as it lies on disk now."""
        located = self._located(name)
        if not located:
            raise unknown_profile(name, self._names() - {name})  # its directory may be there, empty
        newest = max(located)
        if version is not None and version not in located:
            raise unknown_version(name, version, located)
        return self._verified.profile(located[newest if version is None else version])

    def entries(self) -> list[ProfileEntry]:
        """Return the newest version of every profile, by name; a corrupt one is listed with its problem."""
        return [entry for name in sorted(self._names()) if (entry := self._entry(name)) is not None]

    def versions(self, name: str) -> list[int]:
        """Return the published versions in order; ProfileCorrupt if they cannot be listed."""
        return sorted(self._located(name))

    def publish(
        self, manifest: Manifest, deltas: Mapping[int, Tensor], attachments: Mapping[str, bytes], /
    ) -> Profile:
        """Store a new version under root atomically and return it."""
        return publish(
            self.root,
            manifest,
            deltas,
            attachments,
            lambda: max(self._located(manifest.name), default=0) + 1,
        )

    def _entry(self, name: str) -> ProfileEntry | None:
        version = 0
        try:
            located = self._located(name)
            if not located:
                return None
            version = max(located)
            return ProfileEntry(name, version, self._verified.manifest(located[version]), None)
        except ProfileCorrupt as error:
            return ProfileEntry(name, version, None, error.message)

    def _located(self, name: str) -> dict[int, Path]:
        """Return where each version lies; root comes first."""
        if not is_name(name):
            return {}
        located: dict[int, Path] = {}
        for place in self._places:
            home = place / name
            for version in _versions_in(home):
                located.setdefault(int(version), home / version)
        return located

    def _names(self) -> set[str]:
        return {name for place in self._places for name in _names_in(place)}


def _versions_in(home: Path) -> list[str]:
    try:
        with os.scandir(home) as entries:
            return [entry.name for entry in entries if is_version(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if not _is_reachable(home):
            return []
        raise ProfileCorrupt(
            f"profile '{home.name}' is corrupt: its directory cannot be read ({error.strerror}); "
            "let this user read it or remove it"
        ) from error


def _is_reachable(home: Path) -> bool:
    """Return whether the directory above is open at all."""
    try:
        home.lstat()
    except OSError:
        return False
    return True


def _names_in(place: Path) -> list[str]:
    """Return the directories that may be profiles; links too, so that they are refused by name."""
    try:
        with os.scandir(place) as entries:
            return [
                each.name for each in entries if is_name(each.name) and (each.is_symlink() or each.is_dir())
            ]
    except OSError:
        return []


def _warn_if_closed(root: Path) -> None:
    try:
        with os.scandir(root):
            pass
    except FileNotFoundError:
        pass
    except OSError as error:
        _logger.warning("profile store %s is read as empty: %s", root, error.strerror)
