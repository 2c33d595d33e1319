"""Hooks steer what the batch says, on blocks of either kind, and leave no trace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steering.hooks import steered
from steering.kernel import renormalised_add
from steering.types import LayerSteering, SteeringBatch


class Block(nn.Module):
    def forward(self, hidden: Tensor) -> Any:
        return hidden * 2


class TupleBlock(nn.Module):
    def forward(self, hidden: Tensor) -> Any:
        return hidden * 2, "attention"


def batch_of(layer: int, tokens: list[int] | None, delta: Tensor) -> SteeringBatch:
    places = None if tokens is None else torch.tensor(tokens)
    return SteeringBatch({layer: LayerSteering(places, None, delta)}, ())


def test_only_the_planned_tokens_of_the_planned_layer_move() -> None:
    blocks, hidden = [Block(), Block()], torch.randn(2, 3, 8)
    delta = torch.randn(2, 8)
    with steered(blocks) as steering, steering.applying(batch_of(1, [0, 4], delta)):
        first, second = blocks[0](hidden), blocks[1](hidden)
    assert torch.equal(first, hidden * 2)
    flat, plain = second.view(6, 8), (hidden * 2).view(6, 8)
    assert torch.equal(flat[[1, 2, 3, 5]], plain[[1, 2, 3, 5]])
    assert torch.equal(flat[[0, 4]], renormalised_add(plain[[0, 4]], delta))


def test_a_block_that_returns_a_tuple_keeps_what_else_it_returns() -> None:
    block, hidden = TupleBlock(), torch.randn(1, 2, 8)
    with steered([block]) as steering, steering.applying(batch_of(0, None, torch.randn(2, 8))):
        moved, attention = block(hidden)
    assert attention == "attention"
    assert not torch.equal(moved, hidden * 2)


def test_several_tokens_can_share_one_delta() -> None:
    block, hidden, delta = Block(), torch.randn(1, 4, 8), torch.randn(2, 8)
    plan = LayerSteering(torch.tensor([0, 2, 3]), torch.tensor([1, 1, 0]), delta)
    with steered([block]) as steering, steering.applying(SteeringBatch({0: plan}, ())):
        moved = block(hidden)[0]
    assert torch.equal(moved[1], hidden[0, 1] * 2)
    assert torch.equal(moved[[0, 2, 3]], renormalised_add(hidden[0, [0, 2, 3]] * 2, delta[[1, 1, 0]]))


def test_outside_of_a_batch_nothing_moves_and_afterwards_no_hook_is_left() -> None:
    block, hidden = Block(), torch.randn(1, 2, 8)
    with steered([block]) as steering:
        with steering.applying(batch_of(0, None, torch.randn(2, 8))):
            block(hidden)
        assert torch.equal(block(hidden), hidden * 2)
    assert not block._forward_hooks


def test_hooks_are_removed_when_installing_fails_half_way() -> None:
    block = Block()
    with pytest.raises(AttributeError), steered([block, None]):  # type: ignore[list-item]
        pass
    assert not block._forward_hooks


def test_a_planned_layer_that_never_ran_is_an_error_not_silence() -> None:
    with (
        steered([Block(), Block()]) as steering,
        pytest.raises(RuntimeError, match="did not run"),
        steering.applying(batch_of(1, None, torch.randn(2, 8))),
    ):
        pass
