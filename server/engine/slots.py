"""The slot KV cache: one row of memory per running request, grown and compacted as requests come and go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

LENGTH_STEP = 256


@dataclass(frozen=True, slots=True)
class Window:
    """Where one forward pass's tokens go: row i's last counts[i] tokens follow starts[i] in slots[i].

    In a batch of several tokens a row, shorter rows are padded on the left.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def ends(self) -> list[int]:
        return [start + count for start, count in zip(self.starts, self.counts, strict=True)]


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, length, head_dim]; allocated when first written."""

    is_sliding = False

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._allocate(key_states)
        self.values = self._allocate(value_states)
        self.is_initialized = True

    def _allocate(self, states: Tensor) -> Tensor:
        slots, length = self._cache.shape
        return states.new_zeros((slots, states.shape[1], length, states.shape[3]))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        window = self._cache.window
        return (
            write_and_read(self.keys, key_states, window, self._cache.positions),
            write_and_read(self.values, value_states, window, self._cache.positions),
        )

    def reshape(self) -> None:
        """Move what is stored into memory of the cache's new shape."""
        if self.keys is None or self.values is None:
            return
        slots, length = self._cache.shape
        self.keys, self.values = (resized(old, slots, length) for old in (self.keys, self.values))

    def release(self) -> None:
        self.keys = self.values = None  # type: ignore[assignment]
        self.is_initialized = False

    def move(self, source: int, target: int, length: int) -> None:
        for stored in (self.keys, self.values):
            if stored is not None:
                stored[target, :, :length] = stored[source, :, :length]

    def swap(self, first: int, second: int, length: int) -> None:
        for stored in (self.keys, self.values):
            if stored is not None:
                kept = stored[first, :, :length].clone()
                stored[first, :, :length] = stored[second, :, :length]
                stored[second, :, :length] = kept

    def wipe(self, slot: int, length: int) -> None:
        for stored in (self.keys, self.values):
            if stored is not None:
                stored[slot, :, :length] = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return max(self._cache.window.ends), 0

    def get_seq_length(self) -> int:
        return max(self._cache.window.starts)

    def get_max_length(self) -> int:
        return -1


def write_and_read(stored: Tensor, states: Tensor, window: Window, positions: Tensor | None) -> Tensor:
    """Store the new states and return what the window's rows attend to, [rows, heads, length, head_dim]."""
    if len(window.slots) == 1 and window.starts[0]:
        slot, start, end = window.slots[0], window.starts[0], window.ends[0]
        stored[slot, :, start:end] = states[0]
        return stored[slot : slot + 1, :, :end]
    if positions is not None:
        rows = window.slots
        stored[: len(rows)].scatter_(2, positions.expand(-1, stored.shape[1], -1, stored.shape[3]), states)
        return stored[: len(rows), :, : max(window.ends)]
    for index, (slot, start, count) in enumerate(
        zip(window.slots, window.starts, window.counts, strict=True)
    ):
        stored[slot, :, start : start + count] = states[index, :, states.shape[2] - count :]
    return states


def resized(old: Tensor, slots: int, length: int) -> Tensor:
    new = old.new_zeros((slots, old.shape[1], length, old.shape[3]))
    rows, kept = min(slots, old.shape[0]), min(length, old.shape[2])
    new[:rows, :, :kept] = old[:rows, :, :kept]
    return new


class SlotCache(Cache):
    """A transformers Cache whose rows are slots; `window` says what the next forward pass reads and writes.

    Two kinds of window: a decode (`positions` set: one token for each of slots 0..n-1), and a prefill
    (whole fresh prompts padded on the left, or one row that continues). budget is in tokens: slots times
    length never exceed it.
    """

    def __init__(self, layers: int, max_slots: int, max_length: int, budget: int) -> None:
        super().__init__(layers=[SlotLayer(self) for _ in range(layers)])
        self.max_slots = max_slots
        self.max_length = max_length
        self.budget = budget
        self.shape = (0, 0)
        self.window = Window((), (), ())
        self.positions: Tensor | None = None

    @property
    def slot_layers(self) -> Sequence[SlotLayer]:
        return self.layers

    def fits(self, slots: int, length: int) -> bool:
        """Whether so many slots of so many tokens stay within the token budget."""
        return slots * length <= self.budget

    def reserve(self, slots: int, length: int) -> None:
        """Have room for so many slots of so many tokens, growing by doubling while the budget allows."""
        have_slots, have_length = self.shape
        if slots <= have_slots and length <= have_length:
            return
        roomy = (
            min(self.max_slots, doubled(max(have_slots, 1), slots)),
            min(self.max_length, doubled(max(have_length, LENGTH_STEP), length)),
        )
        self.shape = roomy if self.fits(*roomy) else (slots, length)
        for layer in self.slot_layers:
            layer.reshape()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot over another one."""
        for layer in self.slot_layers:
            layer.move(source, target, length)

    def swap(self, first: int, second: int, length: int) -> None:
        for layer in self.slot_layers:
            layer.swap(first, second, length)

    def wipe(self, slot: int, length: int) -> None:
        """Zero a slot's first `length` tokens.

        A mask gives what is left behind the weight zero, and zero times NaN is NaN.
        """
        for layer in self.slot_layers:
            layer.wipe(slot, length)

    def clear(self) -> None:
        """Give the memory back; only while no request runs."""
        self.shape = (0, 0)
        for layer in self.slot_layers:
            layer.release()


def doubled(size: int, need: int) -> int:
    while size < need:
        size *= 2
    return size


def decode_positions(starts: Sequence[int], device: torch.device) -> Tensor:
    """Return the write positions of a decode window, int64 [rows, 1, 1, 1]."""
    return torch.tensor(starts, device=device).view(-1, 1, 1, 1)
