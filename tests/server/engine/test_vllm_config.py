"""What an engine on vLLM is told, and what is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from server.config import Settings
from server.engine.vllm_config import create_engine, engine_config, refuse_device
from steering.checkpoint import read_checkpoint
from steering.errors import ModelUnavailable
from steering.vllm.plugin import NAME
from tests.server.engine.on_vllm import HEAD_DIM
from tests.tiny_models import save_tiny

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
        ("enable_lora=true", "adapters"),
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
