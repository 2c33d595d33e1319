"""Find the decoder blocks of a language or vision-language model."""

from typing import Any, cast

from torch import nn

from steering.errors import ModelUnavailable

# Where a decoder keeps its blocks: most families say `layers`, GPT-2's say `h`.
BLOCK_LISTS = ("layers", "h", "blocks", "block")


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the model's decoder blocks in order; their outputs are the residual stream."""
    decoder = cast(Any, model).get_decoder() if hasattr(model, "get_decoder") else model
    for name in BLOCK_LISTS:
        blocks = getattr(decoder, name, None)
        if isinstance(blocks, nn.ModuleList) and len(blocks):
            return list(blocks)
    raise ModelUnavailable(
        f"{type(model).__name__} has no list of decoder blocks under {', '.join(BLOCK_LISTS)}; "
        "grainserve steers decoder-only transformers"
    )
