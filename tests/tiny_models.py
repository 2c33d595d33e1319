"""Tiny random models of real families, and a byte-level tokenizer, built in memory."""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from steering.loading import LoadedModel, load_model

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
# Two-byte tokens beside the single bytes, so that characters split and join in several ways.
MERGES = [("t", "h"), ("i", "n"), ("Ġ", "a"), ("Ã", "©"), ("ð", "Ł")]


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 265 tokens with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet + ["".join(pair) for pair in MERGES])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0])
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_configs(head_dim: int = 8) -> dict[str, PreTrainedConfig]:
    """Return one small configuration per family: plain, grouped heads, sliding windows, soft caps, biases."""
    common: dict[str, Any] = {
        "vocab_size": len(tiny_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": tiny_tokenizer().eos_token_id,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    mixed = ["sliding_attention", "full_attention"] * 2
    return {
        "llama": LlamaConfig(**common),
        "qwen2": Qwen2Config(**common),
        "qwen3": Qwen3Config(**common),
        "mistral": MistralConfig(**common, sliding_window=12),
        "gemma2": Gemma2Config(**common, sliding_window=12, layer_types=mixed),
        "gemma3": Gemma3TextConfig(**common, sliding_window=12, layer_types=mixed),
        "gpt2": GPT2Config(
            vocab_size=len(tiny_tokenizer()),
            n_embd=4 * head_dim,
            n_layer=4,
            n_head=4,
            n_positions=256,
            bos_token_id=None,
            eos_token_id=tiny_tokenizer().eos_token_id,
        ),
    }


FAMILIES = tuple(tiny_configs())


def save_tiny(family: str, folder: Any, head_dim: int = 8) -> None:
    """Write a tiny random model with its tokenizer; weights are large enough that answers vary."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(tiny_configs(head_dim)[family], dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def load_tiny(family: str, folder: Any, device: str = "cpu") -> LoadedModel:
    """Return the tiny model, loaded as a user's model would be."""
    save_tiny(family, folder)
    return load_model(str(folder), folder, device=device)
