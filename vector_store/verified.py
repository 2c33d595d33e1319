"""Read profiles, and remember which files were verified until they change."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from steering.errors import ProfileCorrupt
from vector_store import artifact
from vector_store.manifest import Manifest
from vector_store.store import Profile

MOST_VERDICTS = 1 << 16

FileSeal = tuple[int, int, int, int]
Seal = tuple[FileSeal | None, FileSeal | None, tuple[bool, bool]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What reading the files of one seal gave: a manifest, or why there is none."""

    seal: Seal
    outcome: Manifest | str


class VerifiedProfiles:
    """Profiles by path; the vectors of those used last are kept, up to so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept_bytes = 0
        self._kept: OrderedDict[Path, tuple[Seal, Profile]] = OrderedDict()
        self._verdicts: dict[Path, Verdict] = {}
        self._lock = Lock()

    def profile(self, path: Path) -> Profile:
        """Return the verified profile; ProfileCorrupt if a check fails."""
        seal = _seal(path)
        with self._lock:
            kept = self._kept.get(path)
            if kept is not None and kept[0] == seal:
                self._kept.move_to_end(path)
                return kept[1]
        self._known_manifest(path, seal)
        profile = self._verify(path, seal)
        self._keep(path, seal, profile)
        return profile

    def manifest(self, path: Path) -> Manifest:
        """Return the verified profile's manifest, without keeping the vectors; ProfileCorrupt likewise."""
        seal = _seal(path)
        return self._known_manifest(path, seal) or self._verify(path, seal).manifest

    def _known_manifest(self, path: Path, seal: Seal) -> Manifest | None:
        verdict = self._verdicts.get(path)
        if verdict is None or verdict.seal != seal:
            return None
        if isinstance(verdict.outcome, str):
            raise ProfileCorrupt(verdict.outcome)
        return verdict.outcome

    def _verify(self, path: Path, seal: Seal) -> Profile:
        """Read the files; the seal is older than they are, so a change meanwhile shows the next time."""
        try:
            profile = artifact.read(path)
        except ProfileCorrupt as error:
            # A file that could not be opened may open the next time with nothing changed on disk.
            if not isinstance(error.__cause__, OSError):
                self._judge(path, Verdict(seal, error.message))
            raise
        self._judge(path, Verdict(seal, profile.manifest))
        return profile

    def _judge(self, path: Path, verdict: Verdict) -> None:
        with self._lock:
            self._verdicts.pop(path, None)
            self._verdicts[path] = verdict
            while len(self._verdicts) > MOST_VERDICTS:
                del self._verdicts[next(iter(self._verdicts))]

    def _keep(self, path: Path, seal: Seal, profile: Profile) -> None:
        with self._lock:
            earlier = self._kept.pop(path, None)
            if earlier is not None:
                self._kept_bytes -= _bytes_in(earlier[1])
            self._kept[path] = (seal, profile)
            self._kept_bytes += _bytes_in(profile)
            while self._kept_bytes > self._most_bytes:
                _, (_, oldest) = self._kept.popitem(last=False)
                self._kept_bytes -= _bytes_in(oldest)


def _seal(path: Path) -> Seal:
    links = path.is_symlink(), path.parent.is_symlink()
    return _file_seal(path / artifact.MANIFEST), _file_seal(path / artifact.VECTORS), links


def _file_seal(path: Path) -> FileSeal | None:
    """Return what changes when the file does, or None where there is none to see."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


def _bytes_in(profile: Profile) -> int:
    return sum(delta.nbytes for delta in profile.vectors.deltas.values())
