"""The custom op that steers a block's output in place, opaque to Dynamo and to whatever compiles the model.

What it does follows from the station of the process, which the model runner's steps fill: a new profile,
strength or composition changes data, never a graph.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library
from vllm.utils.torch_utils import direct_register_custom_op

# What steers a block's output, given its layer; set when a model is loaded into this process.
Steer = Callable[[int, Tensor, Tensor | None], None]

LIBRARY = Library("grainserve", "FRAGMENT")
_steer: Steer | None = None


def use(steer: Steer) -> None:
    """Have the ops of this process call `steer` from now on."""
    global _steer
    _steer = steer


def steer_sum(hidden: Tensor, residual: Tensor, layer: int) -> None:
    """Steer hidden + residual, each [tokens, hidden_size]: a block's output whose sum is put off."""
    assert _steer is not None, "a model was prepared for steering, but nothing steers in this process"
    _steer(layer, hidden, residual)


def steer_whole(hidden: Tensor, layer: int) -> None:
    """Steer hidden [tokens, hidden_size], a block's output."""
    assert _steer is not None, "a model was prepared for steering, but nothing steers in this process"
    _steer(layer, hidden, None)


def fake_sum(hidden: Tensor, residual: Tensor, layer: int) -> None:
    return


def fake_whole(hidden: Tensor, layer: int) -> None:
    return


def register() -> None:
    """Define the ops in this process, once."""
    if hasattr(torch.ops.grainserve, "steer_sum"):
        return
    direct_register_custom_op("steer_sum", steer_sum, ["hidden", "residual"], fake_sum, LIBRARY)
    direct_register_custom_op("steer_whole", steer_whole, ["hidden"], fake_whole, LIBRARY)
