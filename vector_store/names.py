"""Which profile names and versions can exist, and what to say about those that do not."""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from steering.errors import ProfileNotFound
from vector_store.manifest import NAME_PATTERN

LONGEST_NAME = 64
LONGEST_QUOTE = 80
LARGEST_VERSION = 999_999_999
SHOWN = 8
NAME_RULE = f"a name has 1 to {LONGEST_NAME} of a-z, 0-9, '.', '_', '-' and starts with a letter or digit"

_name = re.compile(NAME_PATTERN)
_version = re.compile(r"[1-9][0-9]{0,8}")


def is_name(text: str) -> bool:
    """Return whether a profile can have this name; no such name leaves its directory."""
    return _name.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Return whether a directory of this name holds a version: 1, 2, 3, ... up to nine digits."""
    return _version.fullmatch(text) is not None


def quoted(text: str) -> str:
    """Return the text in quotes, fit for a message: escaped and clipped."""
    return repr(text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}...")


def unknown_profile(name: str, known: Collection[str]) -> ProfileNotFound:
    """Return the error for a name that no profile has: what is near, what there is."""
    missing = f"no profile named {quoted(name)}" + ("" if is_name(name) else f" ({NAME_RULE})")
    if not known:
        return ProfileNotFound(f"{missing}; the store is empty, build a profile first")
    return ProfileNotFound(f"{missing}; {_nearest(name, known)}the store has {_listed(sorted(known))}")


def unknown_version(name: str, version: int, versions: Collection[int]) -> ProfileNotFound:
    """Return the error for a version that a profile does not have: which it has."""
    asked = f"version {version}" if abs(version) <= LARGEST_VERSION else "such version"
    newest_first = sorted(versions, reverse=True)
    return ProfileNotFound(f"profile {quoted(name)} has no {asked}; it has {_listed(newest_first)}")


def _nearest(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name[:LONGEST_NAME], [each for each in known if each != name])
    return f"did you mean {' or '.join(map(quoted, near))}? " if near else ""


def _listed(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"
