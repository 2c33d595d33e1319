"""What is done to a model for speed on a CPU: the values stay."""

from pathlib import Path

import pytest
import torch
from torch import nn

from server.engine.layout import fuse_norms, store_column_major
from tests.tiny_models import FAMILIES, load_tiny

TOKENS = torch.tensor([[5, 17, 99, 4, 200, 31]])


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_norms_leave_the_logits_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = load_tiny(family, tmp_path).model
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            nn.init.normal_(module.weight)
    before = logits(model)
    fuse_norms(model)
    assert torch.equal(logits(model), before)


def test_the_norms_of_the_default_models_family_are_fused(tmp_path: Path) -> None:
    assert fuse_norms(load_tiny("llama", tmp_path).model) == 9


def test_a_norm_that_scales_otherwise_is_left_as_it_is(tmp_path: Path) -> None:
    assert fuse_norms(load_tiny("gemma2", tmp_path).model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_stored_by_columns_give_the_same_logits(family: str, tmp_path: Path) -> None:
    model = load_tiny(family, tmp_path).model
    before = logits(model)
    store_column_major(model)
    torch.testing.assert_close(logits(model), before)
