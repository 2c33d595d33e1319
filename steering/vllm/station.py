"""What steers in one of vLLM's worker processes: the bank, the requests' plans, and the step under way."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steering.plan import BatchRow, DeltaBank, HeldPlan, hold, let_go
from steering.types import SteeringVectors
from steering.vllm.applying import Applying, ByIndex, ByTable
from steering.vllm.plans import KEY, Told, unpacked_request, unpacked_vectors


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A request's part of a step, in the order of the batch: so many tokens, after so many before them."""

    request: str
    count: int
    computed: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What a station is made for.

    layers: the blocks that this process owns. capacity: vectors that may be loaded at a time. most_tokens:
    those of a step. graphs: whether steps are replayed from CUDA graphs, without Python between.
    """

    layers: tuple[int, ...]
    hidden_size: int
    capacity: int
    most_tokens: int
    graphs: bool


class Station:
    """Steers the blocks that this process owns; whoever is not steered is not touched."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        # A request that ended holds its rows until the next step tells so: twice the room is always enough.
        self._bank = DeltaBank(2 * shape.capacity, shape.hidden_size, device, shape.layers)
        self._known: dict[str, SteeringVectors] = {}
        self._requests: dict[str, tuple[Told, HeldPlan]] = {}
        self._applying: Applying = (
            ByTable(self._bank, shape.layers, shape.most_tokens, device)
            if shape.graphs
            else ByIndex(self._bank)
        )
        self.steer = self._applying.steer
        self.verify = self._applying.verify

    def load(self, digest: str, packed: bytes) -> None:
        """Take in vectors, those of the blocks that are here, before any request names them."""
        if digest not in self._known:
            vectors = unpacked_vectors(digest, packed, self.shape.layers)
            self._bank.acquire(vectors)
            self._known[digest] = vectors

    def evict(self, digest: str) -> None:
        """Give up vectors that no request names any more; their row is free once the last step says so."""
        self._bank.release(self._known.pop(digest))

    def begin(self, finished: Iterable[str], arrived: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Begin a step: the requests that left, and the extra_args of those that came."""
        for request in finished:
            if request in self._requests:
                _, held = self._requests.pop(request)
                let_go(held, self._bank)
        for request, extra in arrived.items():
            if extra and KEY in extra and request not in self._requests:
                told = unpacked_request(extra[KEY], self._known)
                self._requests[request] = told, hold(told.plan, self._bank)

    def prepare(self, scheduled: Sequence[Scheduled]) -> None:
        """Steer what this step computes."""
        rows, first = [], 0
        for part in scheduled:
            if part.request in self._requests:
                told, held = self._requests[part.request]
                rows.append(BatchRow(held, first, part.computed, part.count, told.prompt_length, told.images))
            first += part.count
        if rows:
            self._applying.prepare(rows, first)

    def finish(self) -> None:
        self._applying.finish()
