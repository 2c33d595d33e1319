"""From the server's settings to an engine on vLLM: its arguments, ours in them, and what is refused."""

import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from math import prod
from typing import Any, Protocol

import psutil
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from server.engine.memory import GB, SHARE_ON_CPU
from server.engine.transformers_engine import EngineSettings
from server.engine.vllm_causes import SET_ELSEWHERE, in_our_words
from server.engine.vllm_engine import VllmEngine, VllmLimits
from steering.checkpoint import Checkpoint, read_checkpoint
from steering.errors import ModelUnavailable
from steering.vllm import plugin
from steering.vllm.plugin import last_cause, root_of

WORKER = "steering.vllm.worker.SteeringWorker"
MOST_LOGPROBS = 20
# vLLM's arguments that this project sets, or that steering does not survive.
OURS = frozenset(
    {
        "additional_config",
        "worker_cls",
        "worker_extension_cls",
        "structured_outputs_config",
        "max_logprobs",
        "logprobs_mode",
        "disable_log_stats",
        "enable_log_requests",
        "runner",
        "convert",
        "skip_tokenizer_init",
        "seed",
    }
)
UNSTEERABLE = {
    "speculative_config": "a draft model's tokens are not steered as the model's own",
    "enable_lora": "the prefix cache and the fingerprint know of no adapters",
    "enable_dbo": "it splits a step into two batches",
    "enable_prompt_embeds": "prompts are tokens here",
}


PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
# What vLLM's processes on a CPU say at each start and end, and nobody can do anything about.
QUIET = (
    "ignore::FutureWarning:vllm.triton_utils.dispatcher,ignore::UserWarning:multiprocessing.resource_tracker"
)


class VllmSettings(EngineSettings, Protocol):
    """What of the server's settings an engine on vLLM reads; see server.config."""

    @property
    def engine_arg(self) -> Mapping[str, Any]: ...

    @property
    def log_level(self) -> str: ...

    @property
    def served_model_name(self) -> str | None: ...

    @property
    def max_profiles(self) -> int: ...

    @property
    def max_images(self) -> int: ...


def create_engine(settings: VllmSettings) -> VllmEngine:
    """Return an engine for the model, not yet started; raises ModelUnavailable."""
    see_that_vllm_is_there()
    set_environment(settings)
    refuse_arguments(settings.engine_arg)
    checkpoint = read_checkpoint(settings.model, settings.cache_dir)
    try:
        config = engine_config(settings, checkpoint)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        told = in_our_words(explained(error))
        raise ModelUnavailable(f"vLLM cannot serve this: {told}{hint(told)}") from error
    at_once = settings.max_batch_size * config.parallel_config.data_parallel_size
    limits = VllmLimits(at_once, settings.max_waiting, settings.max_profiles)
    return VllmEngine(checkpoint, config, limits)


def explained(error: Exception) -> str:
    """Return what vLLM says of its arguments in one line, without its value dumps and addresses."""
    root = root_of(error)
    if isinstance(root, ValidationError):
        return "; ".join(map(complaint, root.errors(include_url=False, include_input=False)))
    return last_cause(root)


def hint(told: str) -> str:
    """Return what vLLM leaves to its log."""
    if "failed to be inspected" in told and find_spec("torchvision") is None:
        return "; its code for most families with images needs torchvision, which is not installed"
    return ""


def complaint(detail: ErrorDetails) -> str:
    place = ".".join(map(str, detail["loc"]))
    return f"{place}: {detail['msg']}" if place else detail["msg"].removeprefix("Value error, ")


def see_that_vllm_is_there() -> None:
    if find_spec("vllm") is None:
        raise ModelUnavailable(
            "vLLM is not installed here; `make install-vllm` makes an environment of its own for it, and "
            "`make serve-vllm` serves from there"
        )
    named = {entry.name for entry in entry_points(group="vllm.general_plugins")}
    allowed = os.environ.get("VLLM_PLUGINS")
    if plugin.NAME not in named or (allowed is not None and plugin.NAME not in allowed.split(",")):
        raise ModelUnavailable(
            f"vLLM would not load the plugin {plugin.NAME!r}, without which its cache would mix steered and "
            "unsteered answers: install this package there, and name it in VLLM_PLUGINS if that is set"
        )


def set_environment(settings: VllmSettings) -> None:
    """Set what vLLM reads from the environment; what is set already stays."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if settings.log_level == "debug" else "ERROR")
    if settings.log_level != "debug":
        logging.getLogger("vllm").setLevel(logging.ERROR)  # until vLLM reads its own level
        os.environ.setdefault("PYTHONWARNINGS", QUIET)
    if settings.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    if settings.threads or ranks(settings.engine_arg) > 1:
        # Else each rank wants a NUMA node of its own.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def ranks(given: Mapping[str, Any]) -> int:
    """Return how many workers vLLM's arguments ask for; what is no number is vLLM's to refuse."""
    sizes = [given.get(name) for name in PARALLEL]
    return prod(size for size in sizes if isinstance(size, int))


def refuse_arguments(given: Mapping[str, Any]) -> None:
    """Raise ModelUnavailable for arguments that vLLM does not have, or that are not the caller's to set."""
    from vllm import AsyncEngineArgs

    known = {field.name for field in fields(AsyncEngineArgs)}
    for name, value in given.items():
        if name in SET_ELSEWHERE:
            raise ModelUnavailable(f"--engine-arg {name}: say it with {SET_ELSEWHERE[name]}")
        if name in OURS:
            raise ModelUnavailable(f"--engine-arg {name}: the server sets it itself")
        if name in UNSTEERABLE and value not in (None, False):
            raise ModelUnavailable(f"--engine-arg {name}: not with steering, {UNSTEERABLE[name]}")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ModelUnavailable(f"--engine-arg {name}: vLLM has no such argument{hint}")


def engine_config(settings: VllmSettings, checkpoint: Checkpoint) -> Any:
    """Return vLLM's configuration, with steering in it."""
    from vllm import AsyncEngineArgs
    from vllm.config import CUDAGraphMode
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if on_cpu:
        # What vLLM 0.32 compiles ahead of time it cannot load there, and compiles again at each start.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    refuse_device(settings.device, on_cpu)
    checkpoint_dtype = str(checkpoint.parts.config.get_text_config().dtype).removeprefix("torch.")
    arguments: dict[str, Any] = {
        "model": checkpoint.parts.path,
        "served_model_name": settings.served_model_name or checkpoint.identity.id,
        "dtype": settings.dtype if settings.dtype != "auto" else "float32" if on_cpu else checkpoint_dtype,
        "max_model_len": settings.max_context,
        "max_num_seqs": settings.max_batch_size,
        "max_logprobs": MOST_LOGPROBS,
        "structured_outputs_config": {"backend": "guidance"},
        "seed": secrets.randbits(31),
        "enable_prefix_caching": True,
        "worker_extension_cls": WORKER,
        **({"limit_mm_per_prompt": {"image": settings.max_images}} if checkpoint.parts.processor else {}),
        **settings.engine_arg,
    }
    if settings.prefill_chunk:
        arguments["max_num_batched_tokens"] = settings.prefill_chunk + settings.max_batch_size
    gigabytes = settings.kv_cache_gb
    if gigabytes or on_cpu:
        room = gigabytes * GB if gigabytes else psutil.virtual_memory().available * SHARE_ON_CPU
        arguments["kv_cache_memory_bytes"] = int(room)
    config = AsyncEngineArgs(**arguments).create_engine_config()
    graphs = config.compilation_config.cudagraph_mode
    config.additional_config = {
        plugin.NAME: {
            "capacity": settings.max_profiles,
            "graphs": graphs is not None and graphs != CUDAGraphMode.NONE,
        }
    }
    return config


def refuse_device(device: str, on_cpu: bool) -> None:
    if device == "cpu" and not on_cpu:
        raise ModelUnavailable("--device cpu: the vLLM that is installed is for GPUs; vllm-cpu is the other")
    if device.startswith("cuda") and on_cpu:
        raise ModelUnavailable(f"--device {device}: the vLLM that is installed is for CPUs")
    if device.startswith("cuda:"):
        raise ModelUnavailable(f"--device {device}: vLLM takes its GPUs from CUDA_VISIBLE_DEVICES; say cuda")
