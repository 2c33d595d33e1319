"""The arithmetic of steering: one function."""

import torch
from torch import Tensor


def renormalised_add(hidden: Tensor, delta: Tensor) -> Tensor:
    """Return hidden + delta, each token scaled back to the length that it had.

    hidden [..., hidden_size], any float dtype; delta broadcasts against it, strength included.
    A token whose delta is zero comes back bit for bit, and so does one that delta cancels out,
    which has no direction left. Norms are taken in float32.
    Source: GrAInS, arXiv 2507.18043, section 3.
    """
    before = hidden.float()
    moved = before + delta
    length = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
    scale = torch.linalg.vector_norm(before, dim=-1, keepdim=True) / length
    return torch.where(length > 0, moved * scale, before).to(hidden.dtype)
