"""What stock vLLM loads from the entry point group `vllm.general_plugins`, in each of its processes.

It keys generated tokens apart in the prefix cache where they are steered otherwise than a prompt's. Without
such requests vLLM behaves as it would without the plugin.
"""

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from steering.vllm.plans import KEY

NAME = "grainserve"  # of the entry point
# Set to an engine's process id for the processes that it starts.
CHILD = "STEERING_VLLM_ENGINE"
# Names the file into which these processes write what went wrong in them.
CAUSES = "STEERING_VLLM_CAUSES"
DIED = "died unexpectedly"  # what vLLM says of a process that left no exception
MOST_TOLD = 600  # characters of an error
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends


def register() -> None:
    """Prepare this process; may be called more than once."""
    from vllm.v1.core import kv_cache_utils

    if os.environ.get(CHILD) not in (None, str(os.getpid())):
        follow_the_server()
        if path := os.environ.get(CAUSES):
            logging.getLogger("vllm").addHandler(Causes(path))
    if not hasattr(kv_cache_utils.generate_block_hash_extra_keys, "__wrapped__"):
        kv_cache_utils.generate_block_hash_extra_keys = keyed_apart(
            kv_cache_utils.generate_block_hash_extra_keys
        )


def follow_the_server() -> None:
    """Leave Ctrl-C to the server, which drains first, and end when it ends, however that came about."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Causes(logging.Handler):
    """Writes what each logged exception goes back to, and which process died, into a file, a line each.

    The server cannot see either.
    """

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = Path(path)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        cause = record.getMessage() if error is None else last_cause(error)
        if error is None and DIED not in cause:
            return
        try:
            with self._path.open("a", encoding="utf-8") as causes:
                causes.write(cause + "\n")
        except OSError:
            self.handleError(record)


def root_of(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def last_cause(error: BaseException) -> str:
    """Return what an error goes back to, in one line."""
    error = root_of(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:MOST_TOLD]


def keyed_apart(extra_keys: Any) -> Any:
    """Return vLLM's function with a key more for blocks that hold generated tokens of lopsided steering.

    Its arguments: the request, where the block begins and ends, and where to look for images.
    """

    def with_steering(request: Any, start: int, end: int, image: int) -> tuple[Any, int]:
        keys, image = extra_keys(request, start, end, image)
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        apart = extra.get(KEY, {}).get("generated")
        if apart and end > request.num_prompt_tokens:
            keys = (*(keys or ()), (KEY, apart))
        return keys, image

    with_steering.__wrapped__ = extra_keys  # type: ignore[attr-defined]
    return with_steering
