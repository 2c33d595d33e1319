"""Two ways to steer a step's blocks: by index where Python runs in every step, by table in CUDA graphs."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from steering.kernel import renormalised_add
from steering.plan import BatchRow, DeltaBank, segments, steering_batch
from steering.types import LayerSteering, SteeringBatch


class NotSteered(RuntimeError):
    """Blocks did not steer what they were told to."""


class Applying(Protocol):
    """How the blocks of one process are told what to steer, and whether they did."""

    def prepare(self, rows: Sequence[BatchRow], total: int) -> None:
        """Steer these requests in the step that follows, which has `total` tokens."""

    def steer(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Steer a block's output in place: hidden, or hidden + residual, [tokens, hidden_size].

        There may be more tokens than the step has, which pad it.
        """

    def finish(self) -> None:
        """End the step; nothing is steered any more. Raises NotSteered."""

    def verify(self) -> None:
        """Raise NotSteered unless every step so far was steered as it was told to be."""


class ByIndex:
    """Moves the tokens that are steered and touches no others."""

    def __init__(self, bank: DeltaBank) -> None:
        self._bank = bank
        self._batch: SteeringBatch | None = None
        self._total = 0
        self._obeyed: set[int] = set()
        self._decoded: tuple[list[BatchRow], int, SteeringBatch] | None = None

    def prepare(self, rows: Sequence[BatchRow], total: int) -> None:
        self._total = total
        self._batch = self._as_before(rows, total)
        if self._batch is None:
            self._batch = steering_batch(rows, total, self._bank)
            decoding = all(row.start >= row.prompt_length for row in rows)
            self._decoded = (list(rows), total, self._batch) if decoding else None

    def _as_before(self, rows: Sequence[BatchRow], total: int) -> SteeringBatch | None:
        """Return the last step's steering if the same requests decode in the same places."""
        if self._decoded is None:
            return None
        before, tokens, batch = self._decoded
        same = len(before) == len(rows) and all(
            old.held is new.held and old.first == new.first and old.count == new.count
            for old, new in zip(before, rows, strict=True)
        )
        return batch if same and tokens == total else None

    def steer(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        plan = self._batch.layers.get(layer) if self._batch else None
        if plan is None:
            return
        self._obeyed.add(layer)
        tokens = slice(self._total) if plan.tokens is None else plan.tokens
        if residual is None:
            hidden[tokens] = moved(hidden[tokens], plan)
        else:
            residual[tokens] = moved(hidden[tokens] + residual[tokens], plan)
            hidden[tokens] = 0

    def finish(self) -> None:
        missed = set(self._batch.layers) - self._obeyed if self._batch else None
        self._batch, self._obeyed = None, set()
        if missed:
            raise NotSteered(f"layers {sorted(missed)} were to be steered but did not run")

    def verify(self) -> None:
        """Every step was held to its plan as it ended."""


def moved(hidden: Tensor, plan: LayerSteering) -> Tensor:
    return renormalised_add(hidden, plan.delta if plan.owner is None else plan.delta[plan.owner])


class ByTable:
    """Reads from buffers that stay in place how much of which row of the bank is added to each token.

    A graph that was captured once replays with whatever the buffers hold. Each block counts, on the device,
    the tokens that it was told to look at; `verify` holds that against what was asked for.
    """

    def __init__(
        self, bank: DeltaBank, layers: Sequence[int], most_tokens: int, device: torch.device
    ) -> None:
        self._bank = bank
        self._layers = list(layers)
        self._shares = torch.zeros(most_tokens, bank.rows, dtype=torch.float32, device=device)
        self._filled = 0
        self._seen = torch.zeros(max(layers, default=-1) + 1, dtype=torch.int64, device=device)
        self._asked = 0

    def prepare(self, rows: Sequence[BatchRow], total: int) -> None:
        shares = torch.zeros(total, self._bank.rows, pin_memory=self._shares.is_cuda)
        for row in rows:
            for segment in segments(row):
                span = slice(segment.tokens.start, segment.tokens.stop)
                for held in segment.terms:
                    shares[span, held.row] += held.term.strength
        self._asked += int(told(shares).sum())
        self._shares[:total].copy_(shares, non_blocking=True)
        self._filled = total

    def steer(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        shares = self._shares[: len(hidden)]
        delta = shares @ self._bank.table(layer)
        touched = (delta != 0).any(-1, keepdim=True)
        whole = hidden.float() if residual is None else hidden.float() + residual.float()
        steered = renormalised_add(whole, delta).to(hidden.dtype)
        if residual is None:
            hidden.copy_(torch.where(touched, steered, hidden))
        else:
            residual.copy_(torch.where(touched, steered, residual))
            hidden.masked_fill_(touched, 0)
        self._seen[layer] += told(shares).sum()

    def finish(self) -> None:
        self._shares[: self._filled].zero_()
        self._filled = 0

    def verify(self) -> None:
        seen = self._seen[self._layers].tolist()
        missed = [layer for layer, count in zip(self._layers, seen, strict=True) if count != self._asked]
        if missed:
            raise NotSteered(f"layers {missed} did not steer all {self._asked} tokens that they should have")


def told(shares: Tensor) -> Tensor:
    """Return which tokens any row is added to, bool [tokens]."""
    return (shares != 0).any(-1)
