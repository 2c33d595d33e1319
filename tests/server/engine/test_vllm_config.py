"""What an engine on vLLM is told, and what is refused before anything starts."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from server.config import Settings
from server.engine.vllm_causes import Causes
from server.engine.vllm_config import create_engine, engine_config, refuse_device, set_environment
from steering.checkpoint import read_checkpoint
from steering.errors import ModelUnavailable
from steering.vllm import plugin
from steering.vllm.plugin import NAME
from tests.server.engine.on_vllm import HEAD_DIM
from tests.tiny_models import save_tiny
from tests.tiny_vlms import save_tiny_vlm

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    save_tiny("llama", place, HEAD_DIM)
    return place


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(model=str(folder), cache_dir=folder, engine="vllm", kv_cache_gb=0.1, **more)


def test_settings_become_vllms_arguments(folder: Path) -> None:
    asked = settings(
        folder, max_batch_size=7, max_context=96, prefill_chunk=20, max_profiles=9,
        engine_arg=["enforce_eager=true", "block-size=64"],
    )  # fmt: skip
    config = engine_config(asked, read_checkpoint(str(folder), folder))
    assert config.scheduler_config.max_num_seqs == 7
    assert config.scheduler_config.max_num_batched_tokens == 27
    assert config.model_config.max_model_len == 96
    assert config.cache_config.block_size == 64
    assert config.model_config.enforce_eager is True
    assert str(config.model_config.dtype) == "torch.float32"
    assert config.additional_config[NAME] == {"capacity": 9, "graphs": False}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("max_model_len=9", "say it with --max-context"),
        ("worker_extension_cls=x", "the server sets it itself"),
        ('speculative_config={"method": "ngram"}', "draft model's tokens are not steered"),
        ("speculative_config={}", "draft model's tokens are not steered"),
        ("enable_lora=true", "adapters"),
        ("tensor_parallel_size=-1", r"tensor_parallel_size: Input should be greater than or equal to 1$"),
        ("tensor_paralel_size=2", "did you mean tensor_parallel_size"),
        ("tensor_parallel_size=3", "divisible by tensor parallel size"),
    ],
)
def test_arguments_that_cannot_be_are_refused(folder: Path, argument: str, said: str) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        create_engine(settings(folder, engine_arg=[argument]))


def test_a_device_that_this_vllm_is_not_for_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="is for CPUs"):
        refuse_device("cuda", on_cpu=True)
    with pytest.raises(ModelUnavailable, match="is for GPUs"):
        refuse_device("cpu", on_cpu=False)
    with pytest.raises(ModelUnavailable, match="CUDA_VISIBLE_DEVICES"):
        refuse_device("cuda:1", on_cpu=False)


def test_vllm_that_would_not_load_the_plugin_is_refused(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(ModelUnavailable, match="would not load the plugin"):
        create_engine(settings(folder))


def test_a_context_beyond_the_models_is_told_by_our_settings_name(folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"this: User-specified --max-context \(100000\)"):
        create_engine(settings(folder, max_context=100_000))


@pytest.mark.parametrize(
    ("arguments", "bound"),
    [([], None), (["tensor_parallel_size=2"], "nobind"), (["data_parallel_size=2"], "nobind")],
)
def test_several_ranks_share_the_cores_of_a_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], bound: str | None
) -> None:
    monkeypatch.setattr("os.environ", dict(os.environ))
    os.environ.pop("VLLM_CPU_OMP_THREADS_BIND", None)
    set_environment(settings(folder, engine_arg=arguments))
    assert os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == bound


def test_each_data_parallel_rank_has_a_batch_of_its_own(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("os.environ", dict(os.environ))
    engine = create_engine(settings(folder, max_batch_size=3, engine_arg=["data_parallel_size=2"]))
    assert engine.limits.slots == 6


def test_why_vllm_ended_is_found_where_its_processes_wrote_it(monkeypatch: Any) -> None:
    causes = Causes()
    process = logging.getLogger("a process of vLLM's")
    process.addHandler(plugin.Causes(str(causes.path)))
    ended = RuntimeError("Engine core initialization failed. See root cause above.")
    assert causes.of(ended) == "it left no reason; its log may"
    assert causes.written() is None
    error = ValueError("no room;\ntry increasing `gpu_memory_utilization` or decreasing `max_model_len`")
    process.error("failed", exc_info=error)
    process.error("a worker died; see stack trace")
    process.error("and once more", exc_info=RuntimeError("see the stack trace"))
    assert causes.of(RuntimeError("plain")) == "RuntimeError: plain"
    said = "ValueError: no room; try increasing --kv-cache-gb or decreasing --max-context"
    assert causes.of(ended) == causes.of(error) == said
    process.error("Worker proc %s died unexpectedly (exit code: %s)", "VllmWorker-0", 1)
    assert causes.of(ended) == said
    causes.remove()
    process.error("Worker proc %s died unexpectedly (exit code: %s)", "VllmWorker-0", -9)
    process.error("a step failed", exc_info=RuntimeError("cancelled"))
    said = "Worker proc VllmWorker-0 died unexpectedly (exit code: -9)"
    assert causes.of(RuntimeError("cancelled")) == causes.written() == said
    causes.remove()
    assert causes.of(ended) == "it left no reason; its log may"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_family_that_needs_torchvision_says_so(tmp_path: Path) -> None:
    save_tiny_vlm("gemma3", tmp_path, HEAD_DIM)
    with pytest.raises(ModelUnavailable, match=r"needs torchvision, which is not installed$"):
        create_engine(settings(tmp_path))
