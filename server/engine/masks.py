"""Attention masks of a slot batch, one per kind of layer that the model has."""

from typing import Any

import torch
from torch import Tensor

from server.engine.slots import Window
from steering.errors import ModelUnavailable

FULL, SLIDING = "full_attention", "sliding_attention"


class MaskMaker:
    """Makes boolean masks (True: attend) [rows, 1, queries, keys], as the model's attention takes them."""

    def __init__(self, config: Any) -> None:
        self._sliding_window: int = getattr(config, "sliding_window", None) or 0
        self._kinds = mask_kinds(config)
        self._boolean = config._attn_implementation == "sdpa"

    def masks(self, window: Window, device: torch.device) -> Tensor | dict[str, Tensor] | None:
        """Return one mask, or a dict by kind of layer where the model mixes kinds.

        None, for a single token under full attention, leaves it to the model, which then needs no mask.
        """
        if window.counts == (1,) and self._kinds == (FULL,) and self._boolean:
            return None
        queries, keys, padding = token_positions(window, device)
        made = {kind: self._mask(kind, queries, keys, padding) for kind in self._kinds}
        return made if len(made) > 1 else next(iter(made.values()))

    def _mask(self, kind: str, queries: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
        allowed = keys <= queries
        if kind == SLIDING:
            allowed &= keys > queries - self._sliding_window
        if padding is not None:
            allowed &= keys >= 0
            # A padding query sees itself, so that its softmax has something to sum over.
            allowed |= padding
        allowed = allowed.unsqueeze(1)
        if self._boolean:
            return allowed
        lowest = torch.finfo(torch.float32).min
        return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, lowest)


def token_positions(window: Window, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return query positions [rows, queries, 1], key positions [rows, 1, keys], and the padding's diagonal.

    Fresh prompts attend to their own left-padded tokens, where padding has positions below zero; all
    others to their slot from its beginning.
    """
    length = max(window.counts)
    offsets = torch.tensor([end - length for end in window.ends], device=device)
    queries = offsets[:, None] + torch.arange(length, device=device)
    if any(window.starts) or length == 1:
        keys = torch.arange(max(window.ends), device=device).expand(len(window.slots), -1)
        return queries.unsqueeze(2), keys.unsqueeze(1), None
    diagonal = torch.eye(length, dtype=torch.bool, device=device)
    padded = min(window.counts) < length
    return queries.unsqueeze(2), queries.unsqueeze(1), diagonal if padded else None


def mask_kinds(config: Any) -> tuple[str, ...]:
    """Return the kinds of attention that the model's layers use; refuse what a slot cache cannot hold."""
    if getattr(config, "num_attention_heads", None) is None:
        raise ModelUnavailable(
            f"{config.model_type} has no attention; this engine serves full and sliding-window attention"
        )
    declared = getattr(config, "layer_types", None)
    fallback = SLIDING if getattr(config, "sliding_window", None) else FULL
    kinds = tuple(sorted(set(declared or [fallback])))
    unknown = set(kinds) - {FULL, SLIDING}
    if unknown:
        raise ModelUnavailable(
            f"{config.model_type} uses {', '.join(sorted(unknown))}, which this engine cannot batch; "
            "it serves full and sliding-window attention"
        )
    return kinds
