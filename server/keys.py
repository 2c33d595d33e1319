"""API keys: read from settings or a file, and kept as digests alone."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_settings import NoDecode


@dataclass(frozen=True, slots=True)
class Key:
    """A key that opens the server; what it said cannot be read back."""

    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, text: str) -> "Key":
        return cls(digest_of(text.encode()))


def digest_of(shown: bytes) -> bytes:
    return hashlib.sha256(shown).digest()


def opens(keys: Iterable[Key], shown: bytes) -> bool:
    """Return whether one of the keys was shown; all are compared, so that the time taken tells nothing."""
    digest = digest_of(shown)
    return sum(hmac.compare_digest(digest, key.digest) for key in keys) > 0


def read_keys(value: Any) -> Any:
    """Return the keys of a list or a comma-separated string; a string without any is a mistake."""
    if isinstance(value, str):
        texts = [text.strip() for text in value.split(",") if text.strip()]
        if value and not texts:
            raise ValueError("holds no key")
        return tuple(map(Key.of, texts))
    if not isinstance(value, list | tuple):
        raise ValueError("must be a key or a list of keys")
    return tuple(map(key_of, value))


def key_of(value: Any) -> Key:
    if isinstance(value, Key):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a key is empty or not a string")
    return Key.of(value.strip())


def read_key_file(value: Any) -> Any:
    """Return the keys of the file at the path, one a line; blank lines and comments (#) are skipped."""
    if not isinstance(value, str | Path):
        return value
    path = Path(value).expanduser()
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read the keys in {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    keys = tuple(
        key_in(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not keys:
        raise ValueError(f"{path} holds no key")
    return keys


def key_in(line: str, place: str) -> Key:
    if len(line.split()) > 1:
        raise ValueError(f"{place} holds more than a key; comments have lines of their own")
    return Key.of(line.strip())


Keys = Annotated[tuple[Key, ...], NoDecode, BeforeValidator(read_keys)]
KeyFile = Annotated[tuple[Key, ...], NoDecode, BeforeValidator(read_key_file)]
