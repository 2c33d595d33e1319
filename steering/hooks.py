"""Forward hooks that steer decoder blocks, installed once and driven by data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from steering.kernel import renormalised_add
from steering.types import LayerSteering, SteeringBatch


class BlockSteering:
    """Holds the batch in effect while a forward pass runs, and sees that every block obeyed it."""

    def __init__(self) -> None:
        self._batch: SteeringBatch | None = None
        self._obeyed: set[int] = set()

    @contextmanager
    def applying(self, batch: SteeringBatch) -> Iterator[None]:
        """Steer the forward passes inside the block; a planned layer that did not run is an error."""
        self._batch, self._obeyed = batch, set()
        try:
            yield
            missed = set(batch.layers) - self._obeyed
            if missed:
                raise RuntimeError(f"layers {sorted(missed)} were to be steered but did not run")
        finally:
            self._batch = None

    def hook(self, layer: int) -> Any:
        def steer(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            plan = self._batch.layers.get(layer) if self._batch is not None else None
            if plan is None:
                return None
            self._obeyed.add(layer)
            if isinstance(output, tuple):
                return (steer_hidden(output[0], plan), *output[1:])
            return steer_hidden(output, plan)

        return steer


def steer_hidden(hidden: Tensor, plan: LayerSteering) -> Tensor:
    """Return hidden [batch, length, hidden_size] with the planned tokens moved, the others bit for bit."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    delta = plan.delta if plan.owner is None else plan.delta[plan.owner]
    if plan.tokens is None:
        return renormalised_add(flat, delta).view_as(hidden)
    moved = renormalised_add(flat[plan.tokens], delta)
    return flat.index_copy(0, plan.tokens, moved).view_as(hidden)


@contextmanager
def steered(blocks: Sequence[nn.Module]) -> Iterator[BlockSteering]:
    """Install steering hooks on the decoder blocks; all are removed on leaving, whatever happened."""
    steering = BlockSteering()
    handles = []
    try:
        for layer, block in enumerate(blocks):
            handles.append(block.register_forward_hook(steering.hook(layer)))
        yield steering
    finally:
        for handle in handles:
            handle.remove()
