"""How much memory the KV cache may take."""

import psutil
import torch

from steering.errors import ModelUnavailable
from steering.loading import LoadedModel

GB = 1024**3
# Of what is free once the model is loaded; on a CPU the system shares the memory with others.
SHARE_ON_CPU, SHARE_ON_GPU = 0.25, 0.7


def cache_tokens(loaded: LoadedModel, gigabytes: float | None) -> int:
    """Return how many tokens of cache fit; gigabytes None: a share of the memory that is free now."""
    size = bytes_per_token(loaded)
    tokens = int((gigabytes * GB if gigabytes else free_bytes(loaded.device)) // size)
    if tokens < 2:
        raise ModelUnavailable(f"the KV cache has no room for a token of {size} bytes; raise --kv-cache-gb")
    return tokens


def bytes_per_token(loaded: LoadedModel) -> int:
    """Return the bytes of keys and values that one token takes over all layers."""
    config = loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * len(loaded.blocks) * heads * head_size * loaded.model.dtype.itemsize)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * SHARE_ON_GPU)
    return int(psutil.virtual_memory().available * SHARE_ON_CPU)
