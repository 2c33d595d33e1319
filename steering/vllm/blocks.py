"""The decoder blocks of a model that vLLM loaded, each made to steer its own output."""

import inspect
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.model_executor.models.utils import PPMissingLayer

from steering.blocks import BLOCK_LISTS

LAYER = "grainserve_layer"  # a block's attribute: its place among the model's blocks
DEFERRED = "residual"  # the argument of blocks that put off their last sum


class Unsteerable(ValueError):
    """A model whose blocks cannot be steered; the message says why."""


def prepare_blocks(model: nn.Module, layers: int) -> list[int]:
    """Have the model's decoder blocks call the steering ops; return which of the `layers` are here.

    Under pipeline parallelism a process owns some of the blocks. Raises Unsteerable.
    """
    blocks = decoder_blocks(model, layers)
    owned = [layer for layer, block in enumerate(blocks) if not isinstance(block, PPMissingLayer)]
    for layer in owned:
        block = blocks[layer]
        cast(Any, block).__class__ = steering_class(cast(Any, type(block)))
        setattr(block, LAYER, layer)
    return owned


def decoder_blocks(model: nn.Module, layers: int) -> list[nn.Module]:
    """Return the one list of blocks that vLLM divides among pipeline ranks and that is `layers` long."""
    language: Any = cast(Any, model).get_language_model() if hasattr(model, "get_language_model") else model
    found = [
        blocks
        for module in language.modules()
        if hasattr(module, "start_layer")
        for name in BLOCK_LISTS
        if isinstance(blocks := getattr(module, name, None), nn.ModuleList) and len(blocks) == layers
    ]
    if len(found) != 1:
        raise Unsteerable(
            f"{type(model).__name__} has {len(found)} lists of {layers} decoder blocks where one was "
            "expected; this family cannot be steered on vLLM"
        )
    return list(found[0])


@cache
def steering_class(family: type[nn.Module]) -> type[nn.Module]:
    """Return the class of a block with its output steered; raises Unsteerable."""
    deferred = DEFERRED in inspect.signature(family.forward).parameters

    def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        output = family.forward(self, *arguments, **named)
        layer = getattr(self, LAYER)
        if deferred:
            hidden, residual = sum_of(output, family)
            torch.ops.grainserve.steer_sum(hidden, residual, layer)
        else:
            torch.ops.grainserve.steer_whole(whole_of(output, family), layer)
        return output

    return type(family.__name__, (family,), {"forward": forward, "__module__": family.__module__})


def sum_of(output: Any, family: type) -> tuple[Tensor, Tensor]:
    if not isinstance(output, tuple) or len(output) != 2 or not all(map(torch.is_tensor, output)):
        raise Unsteerable(f"{family.__name__} takes a residual but does not return (hidden, residual)")
    hidden, residual = output
    if hidden.dim() != 2 or hidden.shape != residual.shape:
        raise Unsteerable(f"{family.__name__} returns a residual of another shape than its output")
    return hidden, residual


def whole_of(output: Any, family: type) -> Tensor:
    if not torch.is_tensor(output) or output.dim() != 2:
        raise Unsteerable(f"{family.__name__} returns something else than its activations")
    return output
