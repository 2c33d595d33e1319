"""A store in memory: for tests, and for programs that embed the server."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from torch import Tensor

from vector_store import artifact
from vector_store.manifest import Manifest
from vector_store.names import unknown_profile, unknown_version
from vector_store.store import Profile, ProfileEntry


class MemoryStore:
    """Profiles that live as long as this object; checked exactly like those on disk. Thread-safe.

    A profile's path names a directory that does not exist; its attachments are in `attachments`.
    """

    def __init__(self) -> None:
        self.attachments: dict[tuple[str, int], dict[str, bytes]] = {}
        self._profiles: dict[str, dict[int, Profile]] = {}
        self._lock = Lock()

    def get(self, name: str, version: int | None = None) -> Profile:
        """Return the version, or the newest."""
        with self._lock:
            versions = dict(self._profiles.get(name, {}))
            known = list(self._profiles)
        if not versions:
            raise unknown_profile(name, known)
        if version is not None and version not in versions:
            raise unknown_version(name, version, versions)
        return versions[max(versions) if version is None else version]

    def entries(self) -> list[ProfileEntry]:
        """Return the newest version of every profile, by name."""
        with self._lock:
            newest = [versions[max(versions)].manifest for versions in self._profiles.values()]
        newest.sort(key=lambda manifest: manifest.name)
        return [ProfileEntry(manifest.name, manifest.version, manifest, None) for manifest in newest]

    def versions(self, name: str) -> list[int]:
        """Return the published versions in order; empty for an unknown name."""
        with self._lock:
            return sorted(self._profiles.get(name, {}))

    def publish(
        self, manifest: Manifest, deltas: Mapping[int, Tensor], attachments: Mapping[str, bytes], /
    ) -> Profile:
        """Keep a new version and return it."""
        with self._lock:
            versions = self._profiles.get(manifest.name, {})
            version = max(versions, default=0) + 1
            numbered = manifest.model_copy(update={"version": version})
            sealed, files = artifact.seal(numbered, deltas, attachments)
            vectors = artifact.decode_vectors(sealed, files[artifact.VECTORS])
            profile = Profile(sealed, vectors, Path("memory") / sealed.name / str(version))
            self._profiles.setdefault(sealed.name, versions)[version] = profile
            self.attachments[sealed.name, version] = {each: bytes(attachments[each]) for each in attachments}
        return profile
