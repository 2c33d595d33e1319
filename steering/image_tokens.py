"""Pieces of images as token ids: a sequence of words and images is a sequence of ids like any other."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Ids from here on are pieces of images; no vocabulary is that large.
FIRST = 1 << 32


class ImageTokens:
    """What a vision tower made of the images of one process: a feature by id, in the order of seeing.

    prompts: the ids of conversations with images that were seen already, by their own words.
    """

    def __init__(self) -> None:
        self.prompts: dict[str, tuple[int, ...]] = {}
        self._features: list[Tensor] = []
        self._total: Tensor | None = None

    def add(self, features: Tensor) -> tuple[int, ...]:
        """Return new ids for features [pieces, hidden_size]."""
        first = FIRST + len(self._features)
        self._features += features.detach().unbind(0)
        total = features.detach().double().sum(0)
        self._total = total if self._total is None else self._total + total
        return tuple(range(first, FIRST + len(self._features)))

    def of(self, ids: Sequence[int]) -> Tensor:
        """Return the features [pieces, hidden_size] of the ids."""
        return torch.stack([self._features[token - FIRST] for token in ids])

    def mean(self) -> Tensor:
        """Return the mean of all features: the piece of an image that says nothing."""
        assert self._total is not None
        return (self._total / len(self._features)).float()


def is_piece(token: int) -> bool:
    return token >= FIRST


def pieces(ids: Sequence[int]) -> list[int]:
    """Return the places of the pieces of images."""
    return [place for place, token in enumerate(ids) if is_piece(token)]
