"""What makes the same model faster on a CPU and changes no value: the layout of weights, fused norms."""

from functools import partial

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

TRIAL_ROWS = 4


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


def column_major(weight: Tensor) -> Tensor:
    return weight.t().contiguous().t()


def fuse_norms(model: nn.Module) -> int:
    """Have RMS norms run as one call; return how many. Only a norm whose trial comes back bit for bit is.

    Spelled out in Python such a norm is six small operations: 15 us where the call takes 9 us, 61 times a
    step in SmolLM2.
    """
    fused = 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            call = fused_norm(module)
            if call is not None:
                module.forward = call
                fused += 1
    return fused


def fused_norm(module: nn.Module) -> partial[Tensor] | None:
    """Return a call that does what the norm does, or None where there is none that gives the same bits."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    call = partial(functional.rms_norm, normalized_shape=tuple(weight.shape), weight=weight, eps=epsilon)
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(TRIAL_ROWS, *weight.shape, generator=generator).to(weight)
    with torch.inference_mode():
        return call if torch.equal(call(trial), module(trial)) else None
