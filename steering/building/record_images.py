"""The images of a record in a file of pairs or prompts: read, checked, and made data URLs."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from steering.building.pairs import Message, Pair
from steering.building.pictured import picture_of, urls_of
from steering.errors import InvalidPairs
from steering.images import InvalidImage


def parts_of(where: str, key: str, parts: list[Any]) -> tuple[str, list[str]]:
    """Return the words of a list of OpenAI's content parts, and its images, which are data URLs."""
    words, images = [], []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                words.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)}} if url.startswith("data:"):
                images.append(url)
            case _:
                raise InvalidPairs(
                    f"{where}: {key!r}: a part must be a text, or an image_url with a data URL"
                )
    return "\n".join(words), images


def images_of(where: str, fields: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """Return a record's images as data URLs."""
    given = fields.get("images", fields.get("image"))
    found = [given] if isinstance(given, str) else given or []
    if not isinstance(found, list) or not all(isinstance(each, str) and each for each in found):
        raise InvalidPairs(f"{where}: 'image', or each of 'images', must be a data URL or a path")
    if any(each.startswith(("http://", "https://")) for each in found):
        raise InvalidPairs(f"{where}: a build fetches no images; save them beside the file, or use data URLs")
    return tuple(each if each.startswith("data:") else data_url(where, folder / each) for each in found)


def data_url(where: str, path: Path) -> str:
    try:
        return f"data:;base64,{b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise InvalidPairs(f"{where}: the image {path} cannot be read: {error.strerror or error}") from error


def with_images(where: str, messages: tuple[Message, ...], images: tuple[str, ...]) -> tuple[Message, ...]:
    """Return the conversation with the images before its last words; InvalidPairs for one that is none."""
    *before, last = messages
    told = (*before, {**last, "images": (*images, *last.get("images", ()))}) if images else messages
    for url in urls_of(told):
        try:
            picture_of(url)
        except InvalidImage as error:
            raise InvalidPairs(f"{where}: {error.message}") from error
    return told


def digest_of(content: bytes, pairs: Iterable[Pair]) -> str:
    """Return SHA-256 of the file and of the images that lie beside it."""
    digest = hashlib.sha256(content)
    for pair in pairs:
        for url in urls_of(pair.messages):
            digest.update(url.encode())
    return digest.hexdigest()
