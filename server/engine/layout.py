"""Lay linear weights out in memory the way that small batches on a CPU multiply fastest."""

import torch
from torch import nn


def store_column_major(model: nn.Module) -> None:
    """Store every linear layer's weight [out, in] with `in` as the outer dimension; values stay the same.

    A batch of 8 or 32 rows times a row-major weight makes the matrix library repack the weight on every
    call. Measured with SmolLM2's shapes in float32: 1.24 and 1.15 times as fast on one core, 1.03 and
    1.13 on two. A weight shared with the embedding, which reads rows, becomes a copy of its own.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = column_major(module.weight.detach())
            if id(module.weight) in embeddings:
                module.weight = nn.Parameter(weight, requires_grad=False)
            else:
                module.weight.data = weight


def column_major(weight: torch.Tensor) -> torch.Tensor:
    return weight.t().contiguous().t()
