"""Models that the default engine cannot batch say so at the start, in a line."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig

from server.config import Settings
from server.engine.transformers_engine import create_engine
from steering.errors import ModelUnavailable
from tests.tiny_models import tiny_configs, tiny_tokenizer


def mamba() -> Any:
    return MambaConfig(vocab_size=len(tiny_tokenizer()), hidden_size=16, state_size=4, num_hidden_layers=2)


def chunked() -> LlamaConfig:
    config = tiny_configs()["llama"]
    assert isinstance(config, LlamaConfig)
    config.layer_types = ["chunked_attention"] * 4
    return config


@pytest.mark.filterwarnings("ignore:The fast path is not available")
@pytest.mark.parametrize(
    ("config", "told"),
    [(mamba, "mamba has no attention"), (chunked, "llama uses chunked_attention, which this engine cannot")],
)
def test_a_model_without_attention_that_can_be_batched_is_refused(
    config: Any, told: str, tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_config(config()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match=told):
        create_engine(Settings(model=str(tmp_path), cache_dir=tmp_path))
