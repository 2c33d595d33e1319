"""Finished steps of a long computation on disk, so that an interrupted one goes on where it stopped."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from pydantic import TypeAdapter

from steering.building.generation import Deltas
from steering.building.measuring import Measure, Outcome
from steering.errors import InvalidRequest

Value = TypeVar("Value")

OUTCOME = TypeAdapter(Outcome)


class Memo:
    """JSON values by key, one file each in a folder; without a folder nothing is remembered.

    A file is its value and the value's SHA-256; one that is not counts as absent.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def recall(self, key: str, kind: TypeAdapter[Value], compute: Callable[[], Value]) -> Value:
        """Return the value kept under the key, or compute and keep it; floats come back bit for bit."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{sha256(key.encode()).hexdigest()}.json"
        try:
            return kind.validate_python(read_checked(path))
        except (OSError, ValueError):
            value = compute()
        try:
            write_checked(path, json.dumps(kind.dump_python(value, mode="json")).encode())
        except OSError as error:
            raise InvalidRequest(
                f"finished steps cannot be kept in {self._folder}: {error.strerror or error}; "
                "make room there or name another --cache-dir"
            ) from error
        return value

    def count(self) -> int:
        """Return how many values are kept."""
        return len(list(self._folder.glob("*.json"))) if self._folder is not None else 0


def read_checked(path: Path) -> Any:
    digest, _, value = path.read_bytes().partition(b"\n")
    if sha256(value).hexdigest().encode() != digest:
        raise ValueError(f"{path} is not what was written")
    return json.loads(value)


def write_checked(path: Path, value: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{path.name}.{uuid4().hex}")
    staging.write_bytes(sha256(value).hexdigest().encode() + b"\n" + value)
    staging.replace(path)


def remembered(measure: Measure, memo: Memo, items: str) -> Measure:
    """Return the measure, which takes what it once measured from the memo; items: names what it measures."""

    def recall(deltas: Deltas, fluently: bool) -> Outcome:
        key = f"{items} {fluently} {digest_of(deltas)}"
        return memo.recall(key, OUTCOME, lambda: measure(deltas, fluently))

    return recall


def digest_of(deltas: Deltas) -> str:
    """Return SHA-256 over layers and values, as hexadecimal digits."""
    digest = sha256()
    for layer, delta in sorted(deltas.items()):
        digest.update(f"{layer} ".encode() + delta.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()
