"""From the terms of requests to what each block adds: the bank of deltas and the batch's steering."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.types import (
    LayerSteering,
    Positions,
    SteeringBatch,
    SteeringPlan,
    SteeringTerm,
    SteeringVectors,
    Tokens,
)

# Terms that one request may have; a bank of this many rows per slot never runs out.
MOST_TERMS = 8


class DeltaBank:
    """The active profiles' deltas on the model's device: one row a profile, one table a layer.

    Rows are counted in and out by requests; a row that no request holds stays until its place is
    needed, least recently used first. Row 0 is all zeros and pads requests with fewer terms.
    layers: those whose tables are there from the start, so that their addresses never change.
    """

    def __init__(
        self, capacity: int, hidden_size: int, device: torch.device, layers: Sequence[int] = ()
    ) -> None:
        self._shape = (capacity + 1, hidden_size)
        self._device = device
        self._tables = {layer: self._empty() for layer in layers}
        self._rows: dict[str, int] = {}  # digest -> row, least recently used first
        self._holders: dict[str, int] = defaultdict(int)
        self._free = list(range(capacity, 0, -1))

    def acquire(self, vectors: SteeringVectors) -> int:
        """Return the profile's row, loading it if need be, and hold it until `release`."""
        row = self._rows.pop(vectors.digest, None)
        if row is None:
            row = self._load(vectors)
        self._rows[vectors.digest] = row
        self._holders[vectors.digest] += 1
        return row

    def release(self, vectors: SteeringVectors) -> None:
        self._holders[vectors.digest] -= 1
        if not self._holders[vectors.digest]:
            del self._holders[vectors.digest]

    @property
    def rows(self) -> int:
        """The rows of every table, row 0 included."""
        return self._shape[0]

    def table(self, layer: int) -> Tensor:
        """Return a layer's deltas, float32 [rows, hidden_size]."""
        return self._tables[layer]

    def compose(self, layer: int, rows: list[list[int]], strengths: list[list[float]]) -> Tensor:
        """Return sum_t strength_t * delta_t, float32 [owners, hidden_size]; arguments [owners, terms]."""
        weights = torch.tensor(strengths, dtype=torch.float32, device=self._device)
        return torch.einsum("ot,oth->oh", weights, self._tables[layer][self.indices(rows)])

    def indices(self, places: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(places, dtype=torch.int64, device=self._device)

    def _load(self, vectors: SteeringVectors) -> int:
        row = self._free.pop() if self._free else self._evict()
        for table in self._tables.values():
            table[row].zero_()
        for layer, delta in vectors.deltas.items():
            if layer not in self._tables:
                self._tables[layer] = self._empty()
            self._tables[layer][row].copy_(delta)
        return row

    def _empty(self) -> Tensor:
        return torch.zeros(self._shape, dtype=torch.float32, device=self._device)

    def _evict(self) -> int:
        digest = next(d for d in self._rows if d not in self._holders)
        return self._rows.pop(digest)


@dataclass(frozen=True, slots=True)
class HeldTerm:
    """A term that moves something: its place in the plan and its row in the bank."""

    index: int
    term: SteeringTerm
    row: int


@dataclass(frozen=True, slots=True)
class HeldPlan:
    """A request's plan while its vectors are held in the bank; moving leaves out terms at strength zero."""

    plan: SteeringPlan
    moving: tuple[HeldTerm, ...]


def hold(plan: SteeringPlan, bank: DeltaBank) -> HeldPlan:
    """Bring the plan's vectors into the bank; undo it with `let_go`."""
    moving = [
        HeldTerm(index, term, bank.acquire(term.vectors))
        for index, term in enumerate(plan.terms)
        if term.strength != 0.0
    ]
    return HeldPlan(plan, tuple(moving))


def let_go(held: HeldPlan, bank: DeltaBank) -> None:
    for term in held.moving:
        bank.release(term.term.vectors)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One request's tokens in a forward pass.

    first: flat position of its first token in [batch * length]; start: that token's position in the
    request; count: how many follow in order; prompt_length: where generated positions begin; images: where
    image tokens stand in the prompt, as (begin, end).
    """

    held: HeldPlan
    first: int
    start: int
    count: int
    prompt_length: int
    images: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens of one request that share their terms: all image, all words of the prompt, or all
    generated.
    """

    tokens: range
    terms: tuple[HeldTerm, ...]


def segments(row: BatchRow) -> Iterator[Segment]:
    shift, last = row.first - row.start, row.start + row.count
    for positions, tokens, begin, end in runs(row):
        begin, end = max(begin, row.start), min(end, last)
        terms = tuple(held for held in row.held.moving if applies(held.term, positions, tokens))
        if terms and end > begin:
            yield Segment(range(begin + shift, end + shift), terms)


def runs(row: BatchRow) -> Iterator[tuple[Positions, Tokens, int, int]]:
    """Yield the request's runs of one kind, from its first token to the last of this pass."""
    after = 0
    for begin, end in row.images:
        yield "prompt", "text", after, begin
        yield "prompt", "image", begin, end
        after = end
    yield "prompt", "text", after, row.prompt_length
    yield "generated", "text", row.prompt_length, row.start + row.count


def applies(term: SteeringTerm, positions: Positions, tokens: Tokens) -> bool:
    return term.positions in ("all", positions) and term.tokens in ("all", tokens)


def steering_batch(rows: Sequence[BatchRow], total: int, bank: DeltaBank) -> SteeringBatch:
    """Return the steering of a forward pass over `total` = batch * length tokens."""
    by_layer: dict[int, list[Segment]] = defaultdict(list)
    for row in rows:
        for segment in segments(row):
            for layer in {layer for held in segment.terms for layer in held.term.layers}:
                by_layer[layer].append(segment)
    layers = {layer: layer_steering(layer, found, total, bank) for layer, found in by_layer.items()}
    return SteeringBatch(layers, tuple(map(steered_tokens, rows)))


def steered_tokens(row: BatchRow) -> tuple[int, ...]:
    """Return how many of the row's tokens each term of its plan moves."""
    counts = [0] * len(row.held.plan.terms)
    for segment in segments(row):
        for held in segment.terms:
            counts[held.index] += len(segment.tokens)
    return tuple(counts)


def layer_steering(layer: int, found: Sequence[Segment], total: int, bank: DeltaBank) -> LayerSteering:
    here = [[held for held in segment.terms if layer in held.term.layers] for segment in found]
    width = max(map(len, here))
    rows = [[held.row for held in terms] + [0] * (width - len(terms)) for terms in here]
    strengths = [[held.term.strength for held in terms] + [0.0] * (width - len(terms)) for terms in here]
    tokens = [token for segment in found for token in segment.tokens]
    owner = [i for i, segment in enumerate(found) for _ in segment.tokens]
    return LayerSteering(
        tokens=None if tokens == list(range(total)) else bank.indices(tokens),
        owner=None if owner == list(range(len(found))) else bank.indices(owner),
        delta=bank.compose(layer, rows, strengths),
    )
