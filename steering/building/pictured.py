"""Conversations with images as token ids: the vision tower sees each once, its features become ids."""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from PIL import Image

from steering.errors import InvalidPairs, InvalidRequest
from steering.images import bytes_of, decoded
from steering.loading import LoadedModel
from steering.picturing import pictured_of
from steering.vision import ImageInputs, JoinedPrompt, opened

MOST_PIXELS = 32_000_000


def tokenise_pictured(loaded: LoadedModel, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the conversation up to where the answer begins, the pieces of its images as ids of their own.

    Raises InvalidPairs for a model that takes no images, or hands its decoder more than embeddings.
    """
    told = sha256(json.dumps(list(messages)).encode()).hexdigest()
    known = loaded.image_tokens.prompts
    if told not in known:
        known[told] = seen(loaded, messages)
    return known[told]


def urls_of(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the images of a conversation, in order."""
    return [url for message in messages for url in message.get("images", ())]


def picture_of(url: str) -> Image.Image:
    """Return the pixels of a data URL; raises InvalidImage."""
    return decoded(bytes_of(url, "image"), MOST_PIXELS, "image")


def seen(loaded: LoadedModel, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    if loaded.processor is None:
        raise InvalidPairs(f"there are images, and {loaded.identity.id} takes none; name another --model")
    pictures = [picture_of(url) for url in urls_of(messages)]
    prompt, images = pictured_of(loaded).prompt(rendered_with_images(loaded, messages), pictures)
    assert images is not None
    with opened(loaded) as door, torch.no_grad():
        joined = door.join(prompt, images)
    refuse_more_than_embeddings(loaded, joined)
    return replaced(loaded, prompt, images, joined)


def replaced(
    loaded: LoadedModel, prompt: tuple[int, ...], images: ImageInputs, joined: JoinedPrompt
) -> tuple[int, ...]:
    """Return the prompt with an id of its own for each piece of an image."""
    ids = list(prompt)
    for begin, end in images.spans:
        ids[begin:end] = loaded.image_tokens.add(joined.embeddings[begin:end])
    return tuple(ids)


def refuse_more_than_embeddings(loaded: LoadedModel, joined: JoinedPrompt) -> None:
    if joined.positions is not None or joined.mutual or joined.added:
        raise InvalidPairs(
            f"profiles cannot be built from images on {loaded.identity.architecture} yet: its images change "
            "positions, masks or inner layers too; pairs without images work"
        )


def rendered_with_images(loaded: LoadedModel, messages: Sequence[Mapping[str, Any]]) -> str:
    conversation = [
        {
            "role": message["role"],
            "content": [
                *({"type": "image"} for _ in message.get("images", ())),
                {"type": "text", "text": message["content"]},
            ],
        }
        for message in messages
    ]
    try:
        return pictured_of(loaded).render(conversation)
    except InvalidRequest as error:
        raise InvalidPairs(f"{messages[-1]['content'][:100]!r}: {error.message}") from error
