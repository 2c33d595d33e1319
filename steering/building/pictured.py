"""Conversations with images as token ids: the vision tower sees each once, its features become ids."""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from steering.building.layout import Layout
from steering.errors import InvalidPairs, InvalidRequest
from steering.image_tokens import Run
from steering.images import bytes_of, decoded
from steering.loading import LoadedModel
from steering.picturing import pictured_of
from steering.vision import ImageInputs, JoinedPrompt, opened

MOST_PIXELS = 32_000_000


def tokenise_pictured(loaded: LoadedModel, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the conversation up to where the answer begins, the pieces of its images as ids of their own.

    Raises InvalidPairs for a model that takes no images, or treats them in a way that ids cannot tell.
    """
    if loaded.processor is None:
        raise InvalidPairs(f"there are images, and {loaded.identity.id} takes none; name another --model")
    return tokenise_rendered(loaded, rendered_with_images(loaded, messages), urls_of(messages))


def tokenise_rendered(loaded: LoadedModel, text: str, urls: Sequence[str]) -> tuple[int, ...]:
    """Return a rendered conversation, or a part of one, as ids; urls: its images."""
    told = sha256(json.dumps([text, *urls]).encode()).hexdigest()
    known = loaded.image_tokens.prompts
    if told not in known:
        known[told] = seen(loaded, text, urls)
    return known[told]


def urls_of(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the images of a conversation, in order."""
    return [url for message in messages for url in message.get("images", ())]


def picture_of(url: str) -> Image.Image:
    """Return the pixels of a data URL; raises InvalidImage."""
    return decoded(bytes_of(url, "image"), MOST_PIXELS, "image")


def seen(loaded: LoadedModel, text: str, urls: Sequence[str]) -> tuple[int, ...]:
    prompt, images = pictured_of(loaded).prompt(text, [picture_of(url) for url in urls])
    if images is None:
        return prompt
    with opened(loaded) as door, torch.no_grad():
        joined = door.join(prompt, images)
    return replaced(loaded, prompt, images, joined)


def replaced(
    loaded: LoadedModel, prompt: tuple[int, ...], images: ImageInputs, joined: JoinedPrompt
) -> tuple[int, ...]:
    """Return the prompt with an id of its own for each piece of an image.

    Raises InvalidPairs where what the decoder was handed does not follow from the ids.
    """
    ids = list(prompt)
    refuse_uneven(loaded, images, joined)
    for begin, end in images.spans:
        ids[begin:end] = loaded.image_tokens.add(features(joined, begin, end), run_of(joined, begin, end))
    refuse_untold(loaded, ids, joined)
    return tuple(ids)


def features(joined: JoinedPrompt, begin: int, end: int) -> Tensor:
    """Return a run's embeddings, and beside them the rows that inner blocks add."""
    embeddings = joined.embeddings[begin:end]
    if joined.seen is None:
        return embeddings
    first, last = int(joined.seen[:begin].sum()), int(joined.seen[:end].sum())
    return torch.cat([embeddings, *(rows[first:last].to(embeddings) for rows in joined.added)], dim=1)


def run_of(joined: JoinedPrompt, begin: int, end: int) -> Run:
    masks = {kind: allowed(mask)[begin:end, begin:end] for kind, mask in joined.masks.items()}
    if joined.positions is None:
        return Run(masks=masks)
    before = int(joined.positions[:, :begin].max()) + 1 if begin else 0
    return Run(joined.positions[:, begin:end] - before, masks)


def refuse_untold(loaded: LoadedModel, ids: Sequence[int], joined: JoinedPrompt) -> None:
    """Raise InvalidPairs unless the ids alone tell all that the family's own code handed its decoder."""
    layout, length = Layout(loaded, [ids]), len(ids)
    positions, masks = layout.positions(0, length), layout.masks(0, length)
    told = {
        "positions": joined.positions is None
        or (positions is not None and torch.equal(positions[:, 0], joined.positions)),
        "masks": all(
            kind in masks and torch.equal(masks[kind][0, 0], allowed(mask))
            for kind, mask in joined.masks.items()
        ),
    }
    for what, same in told.items():
        if not same:
            raise misunderstood(loaded, what)


def refuse_uneven(loaded: LoadedModel, images: ImageInputs, joined: JoinedPrompt) -> None:
    """Raise InvalidPairs where inner blocks add rows to other tokens than the pieces of images."""
    pieces = [place for begin, end in images.spans for place in range(begin, end)]
    if joined.seen is not None and joined.seen.nonzero()[:, 0].tolist() != pieces:
        raise misunderstood(loaded, "inner blocks")


def misunderstood(loaded: LoadedModel, what: str) -> InvalidPairs:
    return InvalidPairs(
        f"profiles cannot be built from images on {loaded.identity.architecture}: its images change {what} "
        "in a way that is not understood here; pairs without images work"
    )


def allowed(mask: Tensor) -> Tensor:
    """Return what a mask [1, 1, length, length] lets each token attend to, bool [length, length]."""
    return mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0


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
