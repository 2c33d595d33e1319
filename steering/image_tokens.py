"""Pieces of images as token ids: a sequence of words and images is a sequence of ids like any other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Ids from here on are pieces of images; no vocabulary is that large.
FIRST = 1 << 32


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Pieces that follow each other, as their family places them.

    offsets: int64 [axes, pieces], how far their positions lie from that of a word in the first one's place;
    None: they count like words. masks: bool [pieces, pieces], which of them each one attends to, by kind of
    layer; none: those before it.
    """

    offsets: Tensor | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)


class ImageTokens:
    """What a vision tower made of the images of one process: features by id, in the order of seeing.

    A piece's features are its embedding and, in families that have them, the rows that the first blocks add
    to it, one after the other. prompts: the ids of conversations with images that were seen already, by their
    own words. axes: of the positions of families that number pieces otherwise than words; 0: no such family.
    """

    def __init__(self) -> None:
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.axes = 0
        self._features: list[Tensor] = []
        self._runs: list[tuple[Run, int]] = []
        self._total: Tensor | None = None

    def add(self, features: Tensor, run: Run = Run()) -> tuple[int, ...]:
        """Return new ids for the features [pieces, hidden_size * (1 + blocks that add)] of a run."""
        first = FIRST + len(self._features)
        self._features += features.detach().unbind(0)
        self._runs += [(run, place) for place in range(len(features))]
        self.axes = self.axes if run.offsets is None else len(run.offsets)
        total = features.detach().double().sum(0)
        self._total = total if self._total is None else self._total + total
        return tuple(range(first, FIRST + len(self._features)))

    def of(self, ids: Sequence[int]) -> Tensor:
        """Return the features of the ids, one row each."""
        return torch.stack([self._features[token - FIRST] for token in ids])

    def run_of(self, token: int) -> tuple[Run, int]:
        """Return the piece's run and its place in it."""
        return self._runs[token - FIRST]

    def columns(self, ids: Sequence[int]) -> int | None:
        """Return how many pieces a row of the one image among the ids has; None: nothing tells."""
        seen = [token for token in ids if is_piece(token)]
        offsets = self.run_of(seen[0])[0].offsets if seen else None
        if offsets is None:
            return None
        rows, columns = (int(axis.max()) + 1 for axis in offsets[-2:])
        return columns if rows * columns == len(seen) else None

    def mean(self) -> Tensor:
        """Return the mean of all features: the piece of an image that says nothing."""
        assert self._total is not None
        return (self._total / len(self._features)).float()


def is_piece(token: int) -> bool:
    return token >= FIRST


def pieces(ids: Sequence[int]) -> list[int]:
    """Return the places of the pieces of images."""
    return [place for place, token in enumerate(ids) if is_piece(token)]
