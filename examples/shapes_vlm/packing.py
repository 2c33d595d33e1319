"""Many questions about one picture become one row of tokens here, none seeing another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shapes_vlm.checkpoint import IMAGE_TOKENS
from shapes_vlm.lessons import Lesson
from shapes_vlm.vocabulary import ASSISTANT, END, IMAGE, INDEX, PAD, USER, encode

PREFIX = [INDEX[USER], *[INDEX[IMAGE]] * IMAGE_TOKENS]
# What a token belongs to: the padding, the picture that all see, or a lesson, counted from 1.
NOTHING, PICTURE = -1, 0
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Row:
    """One picture's tokens; targets: the next token, where an answer is learnt."""

    tokens: list[int]
    positions: list[int]
    groups: list[int]
    blind: list[bool]
    targets: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens, positions, targets: [rows, length]; pixels: [rows, 3, side, side].

    sees: [rows, 1, length, length], whether a token sees another.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    sees: Tensor
    pixels: Tensor


def pack(pictures: Sequence[Image.Image], lessons: Sequence[Sequence[Lesson]]) -> Batch:
    """Return a batch in which each lesson sees its picture and itself, as if it were asked alone."""
    rows = [pack_row(told) for told in lessons]
    length = max(len(row.tokens) for row in rows)
    groups = padded([row.groups for row in rows], length, NOTHING)
    blind = padded([row.blind for row in rows], length, False).bool()
    return Batch(
        tokens=padded([row.tokens for row in rows], length, INDEX[PAD]),
        positions=padded([row.positions for row in rows], length, 0),
        targets=padded([row.targets for row in rows], length, IGNORED),
        sees=visible(groups, blind),
        pixels=to_pixels(pictures),
    )


def pack_row(told: Sequence[Lesson]) -> Row:
    """Return one row; each lesson's positions go on where its prompt begins."""
    before = len(PREFIX)
    row = Row([*PREFIX], [*range(before)], [PICTURE] * before, [False] * before, [IGNORED] * before)
    for group, lesson in enumerate(told, start=PICTURE + 1):
        question = encode(f"{USER if lesson.blind else ''}{lesson.question}{ASSISTANT}")
        answer = encode(f"{lesson.answer}{END}")
        tokens = question + answer[:-1]
        start = 0 if lesson.blind else before
        row.tokens.extend(tokens)
        row.positions.extend(range(start, start + len(tokens)))
        row.groups.extend([group] * len(tokens))
        row.blind.extend([lesson.blind] * len(tokens))
        row.targets.extend([IGNORED] * (len(question) - 1) + answer)
    return row


def padded(rows: Sequence[Sequence[int]], length: int, filler: int) -> Tensor:
    """Return integers [rows, length]."""
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])


def visible(groups: Tensor, blind: Tensor) -> Tensor:
    """Return what sees what, [rows, 1, length, length]; groups and blind: [rows, length]."""
    earlier = torch.ones(groups.shape[1], groups.shape[1], dtype=torch.bool).tril()
    own = groups[:, :, None] == groups[:, None, :]
    picture = (groups[:, None, :] == PICTURE) & ~blind[:, :, None]
    return (earlier & (own | picture))[:, None]


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Return [pictures, 3, side, side] in [-1, 1], as the processor makes them of 48 by 48 pixels."""
    levels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return ((levels.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
