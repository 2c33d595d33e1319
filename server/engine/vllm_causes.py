"""Why vLLM cannot start or has ended: what its own processes wrote of it, by the names of our settings."""

import re
import secrets
import tempfile
import time
from pathlib import Path

from steering.vllm.plugin import DIED, last_cause

# vLLM's arguments that a setting of the server's own says.
SET_ELSEWHERE = {
    "model": "--model",
    "tokenizer": "--model",
    "dtype": "--dtype",
    "max_model_len": "--max-context",
    "max_num_seqs": "--max-batch-size",
    "max_num_batched_tokens": "--prefill-chunk",
    "kv_cache_memory_bytes": "--kv-cache-gb",
    "served_model_name": "--served-model-name",
}
RENAMED = {
    **{name: setting for name, setting in SET_ELSEWHERE.items() if "_" in name},
    "increasing gpu_memory_utilization": "increasing --kv-cache-gb",
}
NAMES = re.compile(rf"\b({'|'.join(RENAMED)})\b")
POINTS_ELSEWHERE = re.compile("stack trace|root cause|^RuntimeError: cancelled$", re.IGNORECASE)
RECENT = 30.0  # seconds between an error in one of vLLM's processes and its end


class Causes:
    """The file that vLLM's processes write what went wrong into; see steering.vllm.plugin."""

    def __init__(self) -> None:
        # It is there once something went wrong; its name cannot be guessed.
        self.path = Path(tempfile.gettempdir(), f"grainserve-vllm-{secrets.token_hex(16)}")

    def of(self, error: BaseException) -> str:
        """Return why vLLM ended, in one line; error: what this process heard, which may point elsewhere."""
        told = last_cause(error)
        if not POINTS_ELSEWHERE.search(told):
            return in_our_words(told)
        return self.written() or "it left no reason; its log may"

    def written(self) -> str | None:
        """Return what vLLM's processes last wrote of an end that was not long ago: why, or else who died."""
        lines = [line for line in self._recent() if not POINTS_ELSEWHERE.search(line)]
        lines = [line for line in lines if DIED not in line] or lines
        return in_our_words(lines[-1]) if lines else None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _recent(self) -> list[str]:
        try:
            if time.time() - self.path.stat().st_mtime > RECENT:
                return []
            return self.path.read_text("utf-8", errors="replace").splitlines()
        except OSError:
            return []


def in_our_words(told: str) -> str:
    """Return vLLM's words with its arguments' names replaced by the settings that say them here."""
    return NAMES.sub(lambda name: RENAMED[name[1]], told.replace("`", ""))
