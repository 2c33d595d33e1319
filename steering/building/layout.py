"""Rows of words and pieces of images on their way to the decoder: positions, masks, what inner blocks add.

A family may number the pieces of an image along several axes (M-RoPE), let them see each other, or add rows
to them after its first blocks. Its own code derives that from pixels; here it is derived from the ids, at the
decoder's door, so that whoever calls the model needs to know of embeddings alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from steering.image_tokens import Run, is_piece
from steering.loading import LoadedModel

SLIDING = "sliding_attention"


class Layout:
    """Where the tokens of some rows stand in passes over them, of which each goes on where one ended.

    rows: token ids; they are padded on the right, or on the left, to the longest. attention: [rows, longest],
    0 for what nothing attends to; None: all are attended to. One row stands for any number of like ones.
    features: the rows of steering.building.ablation.embed, [rows, longest, width], for passes that are told
    ids; None: the passes are told embeddings, or ids without images. An answer may follow where a row ends.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[Sequence[int]],
        attention: Tensor | None = None,
        left: bool = False,
        features: Tensor | None = None,
    ) -> None:
        self._loaded = loaded
        self._features = features
        self._width = max(map(len, rows))
        shape = len(rows), self._width
        self._attention = torch.ones(shape) if attention is None else attention
        self._attention = self._attention.bool().to(loaded.device)
        self._seen = torch.zeros(shape, dtype=torch.bool)
        self._masks: dict[str, Tensor] = {}
        # The position of the word that comes after the rows.
        self._next = torch.zeros(len(rows), dtype=torch.int64)
        self._axes = loaded.image_tokens.axes
        self._positions = torch.zeros((max(self._axes, 1), *shape), dtype=torch.int64)
        for row, ids in enumerate(rows):
            self._place(row, ids, self._width - len(ids) if left else 0)
        self._seen = self._seen.to(loaded.device)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Hand the decoder what belongs to the rows, in the forward passes inside the block."""
        model, handles = cast(Any, self._loaded.model), []
        token = UNDER_WAY.set(self)
        try:
            if self._loaded.processor is not None:
                for module, hook in ((model, self._numbered), (model.get_decoder(), self._completed)):
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            yield
        finally:
            UNDER_WAY.reset(token)
            for handle in handles:
                handle.remove()

    def seen(self, start: int, end: int) -> Tensor:
        """Return which tokens from start to end are pieces of images, bool [rows, end - start]."""
        return pad(self._seen[:, start:end], (0, max(end - max(start, self._width), 0)))

    def positions(self, start: int, end: int) -> Tensor | None:
        """Return the tokens' positions, int64 [axes, rows, end - start]; None: they count up from 0."""
        if not self._axes:
            return None
        beyond = torch.arange(max(end - self._width, 0)) + self._next[:, None]
        beyond = beyond.expand(len(self._positions), -1, -1)
        return torch.cat([self._positions, beyond], dim=2)[..., start:end].to(self._loaded.device)

    def masks(self, start: int, end: int, past: Any = None) -> dict[str, Tensor]:
        """Return masks, bool [rows, 1, end - start, keys], by kind of layer, if pieces see each other there.

        past: the cache, which says what keys there are; None: the tokens up to the end.
        """
        if not self._masks or not bool(self._seen[:, start:end].any()):
            return {}
        return {kind: self._mask(kind, start, end, past) for kind in self._masks}

    def _place(self, row: int, ids: Sequence[int], first: int) -> None:
        """Lay out one row, which begins at place `first`."""
        following = 0
        for begin, end, run in stretches(self._loaded, ids):
            here = slice(first + begin, first + end)
            offsets = torch.arange(end - begin)[None]
            if run is not None:
                self._seen[row, here] = True
                offsets = offsets if run.offsets is None else run.offsets[:, : end - begin].cpu()
                self._open(row, here, run)
            self._positions[:, row, here] = following + offsets
            following += int(offsets.max()) + 1
        after = self._width - first - len(ids)
        self._positions[:, row, first + len(ids) :] = following + torch.arange(after)
        self._next[row] = following + after

    def _open(self, row: int, here: slice, run: Run) -> None:
        """Let the pieces of a run see each other as their family has it."""
        length = here.stop - here.start
        for kind, mask in run.masks.items():
            if kind not in self._masks:
                shape = len(self._seen), self._width, self._width
                self._masks[kind] = torch.zeros(shape, dtype=torch.bool, device=self._loaded.device)
            self._masks[kind][row, here, here] = mask[:length, :length]

    def _mask(self, kind: str, start: int, end: int, past: Any) -> Tensor:
        config = cast(Any, self._loaded.model).get_decoder().config
        count, first = end, 0
        if past is not None:
            count, first = past.get_mask_sizes(end - start, config.layer_types.index(kind))
        device = self._loaded.device
        queries, keys = torch.arange(start, end, device=device), torch.arange(count, device=device) + first
        near = keys <= queries[:, None]
        if kind == SLIDING:
            near = near & (keys > queries[:, None] - config.sliding_window)
        within = (0, max(first + count - self._width, 0))
        mutual = pad(self._masks[kind][:, start:end], within)[..., first : first + count]
        attended = pad(self._attention, within)[:, None, first : first + count]
        # Padding attends to itself: a softmax over nothing would be NaN.
        return ((near | mutual) & attended | (keys == queries[:, None]))[:, None]

    def _numbered(self, _module: Any, inputs: Any, handed: dict[str, Any]) -> Any:
        """Give the tokens of this pass their positions; a family's own code remembers the last image's."""
        start, end, batch = bounds(handed)
        positions = self.positions(start, end)
        if positions is None:
            return None
        return inputs, {**handed, "position_ids": positions.expand(-1, batch, -1)}

    def _completed(self, module: Any, inputs: Any, handed: dict[str, Any]) -> Any:
        """Give the decoder all that it takes for the tokens of this pass beside their embeddings."""
        start, end, batch = bounds(handed)
        _, handed = self._numbered(module, inputs, handed) or (inputs, handed)
        masks = self.masks(start, end, handed.get("past_key_values"))
        if masks:
            embeddings = handed["inputs_embeds"]
            handed = {**handed, "attention_mask": as_taken(masks, module.config, batch, embeddings.dtype)}
        features = handed["inputs_embeds"]
        if self._features is not None and start < self._width:
            features = self._features[:, start:end]
        return inputs, {**handed, **self._split(features, self.seen(start, end))}

    def _split(self, features: Tensor, seen: Tensor) -> dict[str, Any]:
        """Return features [batch, length, hidden_size * (1 + blocks that add)] as the decoder takes them."""
        size = self._loaded.identity.hidden_size
        if features.shape[-1] == size:
            return {"inputs_embeds": features}
        embeddings, *added = features.split(size, dim=-1)
        seen = seen.expand(len(features), -1)
        handed: dict[str, Any] = {"inputs_embeds": embeddings}
        if bool(seen.any()):
            handed["visual_pos_masks"] = seen
            handed["deepstack_visual_embeds"] = [rows[seen] for rows in added]
        return handed


# The rows of the forward pass under way.
UNDER_WAY: ContextVar[Layout] = ContextVar("UNDER_WAY")


def bounds(handed: dict[str, Any]) -> tuple[int, int, int]:
    """Return the places in the rows where a pass begins and ends, and how many rows it has."""
    embeddings, past = handed.get("inputs_embeds"), handed.get("past_key_values")
    batch, length = (handed["input_ids"] if embeddings is None else embeddings).shape[:2]
    start = int(past.get_seq_length()) if past is not None else 0
    return start, start + length, batch


def stretches(loaded: LoadedModel, ids: Sequence[int]) -> Iterator[tuple[int, int, Run | None]]:
    """Yield the ids' stretches of words, and runs of pieces of images, as (begin, end, run)."""
    begin = 0
    while begin < len(ids):
        end, run = begin + 1, None
        if is_piece(ids[begin]):
            run, _ = loaded.image_tokens.run_of(ids[begin])
        while end < len(ids) and continues(loaded, ids[end], run):
            end += 1
        yield begin, end, run
        begin = end


def continues(loaded: LoadedModel, token: int, run: Run | None) -> bool:
    """Return whether the token goes on with the run, or with words where that is None."""
    if run is None or not is_piece(token):
        return run is None and not is_piece(token)
    its, place = loaded.image_tokens.run_of(token)
    return its is run and place > 0


def as_taken(masks: dict[str, Tensor], config: Any, batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the masks as the family's attention takes them: booleans, or numbers to add."""
    taken = {kind: mask.expand(batch, -1, -1, -1) for kind, mask in masks.items()}
    if config._attn_implementation != "eager":
        return taken
    hidden = torch.tensor(torch.finfo(dtype).min, dtype=dtype)
    return {kind: torch.where(mask, hidden.new_zeros(()), hidden) for kind, mask in taken.items()}


def widened(rows: Tensor, width: int) -> Tensor:
    """Return rows [..., at most width] with zeros behind: inner blocks add nothing to a word."""
    return pad(rows, (0, width - rows.shape[-1])) if rows.shape[-1] < width else rows


def side_by_side(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return the rows of all parts, each as wide as the widest."""
    width = max(part.shape[-1] for part in parts)
    return [widened(part, width) for part in parts]
