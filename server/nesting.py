"""How deep and how crowded JSON may be: what is small to send can be slow to read."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

MOST_DEPTH = 48
MOST_CONTAINERS = 100_000
# A string, as far as it goes: what is never closed ends with the text, so that each byte is read once.
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def crowded(*written: bytes) -> bool:
    """Return whether JSON has more arrays and objects than are read in a moment; it need not be parsed.

    written: texts that count together.
    """
    room = MOST_CONTAINERS - sum(map(containers, written))
    if room >= 0:
        return False
    for text in written:
        for string in STRING.finditer(text):  # one by one: other threads run in between
            room += containers(string[0])
    return room < 0


def containers(written: bytes) -> int:
    return written.count(b"[") + written.count(b"{")


def children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()


def deeper(value: Any, levels: int) -> bool:
    if levels < 0:
        return True
    return any(deeper(child, levels - 1) for child in children(value))
