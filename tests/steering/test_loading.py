"""Models load from a directory, say who they are, and fail with a reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from steering.embedded import embedded_model
from steering.errors import ModelUnavailable
from steering.loading import LoadedModel, load_model
from tests.tiny_models import FAMILIES, save_tiny, tiny_tokenizer

Loader = Callable[[str], LoadedModel]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_blocks_are_found_in_order(tiny_model: Loader, family: str) -> None:
    loaded = tiny_model(family)
    assert len(loaded.blocks) == 4
    assert loaded.identity.layers == 4
    assert loaded.identity.hidden_size == 32


def test_the_fingerprint_is_the_same_at_every_serving_dtype(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    prints = {
        load_model(str(tmp_path / "model"), tmp_path, dtype, "cpu").identity.fingerprint
        for dtype in ("float32", "bfloat16", "float16")
    }
    assert len(prints) == 1


def test_the_fingerprint_sees_weights_template_and_vocabulary(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    first = load_model(str(tmp_path / "model"), tmp_path).identity.fingerprint
    tokenizer = tiny_tokenizer()
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = str(before) + " "
        tokenizer.save_pretrained(tmp_path / "model")
    finally:
        tokenizer.chat_template = before
    second = load_model(str(tmp_path / "model"), tmp_path).identity.fingerprint
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.mul_(1.01)
    model.save_pretrained(tmp_path / "model")
    third = load_model(str(tmp_path / "model"), tmp_path).identity.fingerprint
    assert len({first, second, third}) == 3


def test_a_directory_without_a_model_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=tmp_path.name):
        load_model(str(tmp_path), tmp_path)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="cuda:99"):
        load_model(str(tmp_path), tmp_path, device="cuda:99")


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="when the hub can be reached"):
        load_model("nobody/no-such-model", tmp_path)


@pytest.mark.slow
def test_the_embedded_model_is_converted_once_and_answers(tmp_path: Path) -> None:
    folder = embedded_model(tmp_path)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    loaded = load_model(None, tmp_path, device="cpu")
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = loaded.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        answer = loaded.model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(answer[0])
