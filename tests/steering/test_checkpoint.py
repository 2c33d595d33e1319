"""A checkpoint tells what it is without being loaded, and tells the same as the loaded model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from server.engine.transformers_engine import end_tokens
from steering.checkpoint import read_checkpoint
from steering.errors import ModelUnavailable
from steering.loading import LoadedModel, load_model
from tests.tiny_models import FAMILIES, save_tiny
from tests.tiny_vlms import save_tiny_vlm


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stored_model_has_the_identity_of_the_loaded_one(tmp_path: Path, family: str) -> None:
    save_tiny(family, tmp_path)
    loaded = load_model(str(tmp_path), tmp_path, device="cpu")
    checkpoint = read_checkpoint(str(tmp_path), tmp_path)
    assert checkpoint.identity == loaded.identity
    assert checkpoint.end_tokens == end_tokens(loaded)


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_so_does_one_that_takes_images(tmp_path: Path, family: str) -> None:
    save_tiny_vlm(family, tmp_path)
    assert read_checkpoint(str(tmp_path), tmp_path).identity == load_model(str(tmp_path), tmp_path).identity


def test_one_in_several_files_is_read_from_all_of_them(
    tmp_path: Path, tiny_model: Callable[[str], LoadedModel]
) -> None:
    loaded = tiny_model("llama")
    loaded.model.save_pretrained(tmp_path / "llama", max_shard_size="10KB")
    loaded.tokenizer.save_pretrained(tmp_path / "llama")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 1
    checkpoint = read_checkpoint(str(tmp_path / "llama"), tmp_path)
    assert checkpoint.identity.fingerprint == loaded.identity.fingerprint


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="there is no directory"):
        read_checkpoint(str(tmp_path / "nowhere"), tmp_path)
