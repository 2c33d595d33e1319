"""Load a model once: weights, tokenizer, decoder blocks, and the fingerprint that vectors are tied to."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from steering.blocks import decoder_blocks
from steering.embedded import EMBEDDED_ID, embedded_model
from steering.errors import ModelUnavailable
from steering.image_tokens import ImageTokens
from steering.processor import chat_template_of, image_token_of, load_processor
from steering.types import ModelIdentity

# What of a configuration makes two models differ under the same weights; other keys come and go
# between versions of transformers.
CONFIG_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "sliding_window",
    "tie_word_embeddings",
)
SAMPLED_VALUES = 64
FAILURES = (OSError, ValueError, KeyError, ImportError, RuntimeError)  # of transformers' loading
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model ready for inference: blocks are its decoder blocks, in order.

    processor: of a vision-language model, what turns images into tensors; None: it takes words alone.
    image_tokens: the images that building has seen.
    """

    model: PreTrainedModel
    tokenizer: Any
    blocks: list[nn.Module]
    identity: ModelIdentity
    processor: Any = None
    image_tokens: ImageTokens = field(default_factory=ImageTokens)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0)) or 2048

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def image_token(self) -> int | None:
        """The id of the token that stands for a piece of an image; None: the model takes no images."""
        return image_token_of(self.model.config) if self.processor is not None else None


def load_model(source: str | None, cache_dir: Path, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Load a directory, a hub id, or with None the embedded default; frozen and in evaluation mode.

    dtype auto: the checkpoint's on a GPU, float32 on a CPU. device auto: CUDA where there is one.
    Raises ModelUnavailable with the reason.
    """
    place = choose_device(device)
    parts = read_parts(source, cache_dir)
    try:
        model = parts.family.from_pretrained(parts.path, dtype="auto", device_map={"": place})
    except FAILURES as error:
        raise ModelUnavailable(explain(parts.name, error)) from error
    identity = identify(parts, model, weight_samples(model))
    if not getattr(model, "is_quantized", False):
        model.to(choose_dtype(dtype, model.dtype, place))
    model.eval().requires_grad_(False)
    return LoadedModel(model, parts.tokenizer, decoder_blocks(model), identity, parts.processor)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A checkpoint but for its weights.

    name: as it was asked for; path: a directory or a hub id; family: the class that loads the weights.
    """

    name: str
    path: str
    config: Any
    tokenizer: Any
    processor: Any
    family: Any


def read_parts(source: str | None, cache_dir: Path) -> Parts:
    """Read a directory's, a hub id's, or with None the embedded model's; raises ModelUnavailable."""
    if source is not None and source.startswith(("/", "./", "../", "~")) and not Path(source).is_dir():
        raise ModelUnavailable(f"there is no directory {source}; --model takes a directory or a hub id")
    name = source or EMBEDDED_ID
    path = source or str(embedded_model(cache_dir))
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path)
        refuse_unsteerable(config)
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        processor = load_processor(path, config) if sees else None
        tokenizer = processor.tokenizer if processor else AutoTokenizer.from_pretrained(path)
    except FAILURES as error:
        raise ModelUnavailable(explain(name, error)) from error
    # The first call settles truncation and padding; later ones only read, so threads can share it.
    tokenizer(" ")
    family = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return Parts(name, path, config, tokenizer, processor, family)


def choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelUnavailable(f"no such device: {device!r}; use auto, cpu, cuda or cuda:0") from error
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda:0")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ModelUnavailable(
            f"device {device} is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use --device cpu or auto"
        )
    return place


def choose_dtype(dtype: str, checkpoint: torch.dtype, place: torch.device) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    return checkpoint if place.type == "cuda" else torch.float32


def refuse_unsteerable(config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{config.model_type} is an encoder-decoder; grainserve serves decoder-only models")


def explain(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:400]
    return (
        f"model {name!r} could not be loaded: {reason} "
        "(--model takes a local directory, or a hub id when the hub can be reached)"
    )


def identify(parts: Parts, model: PreTrainedModel, samples: Iterable[tuple[str, Tensor]]) -> ModelIdentity:
    """Return what vectors are tied to; samples: of the model's weights, see `weight_samples`."""
    config = model.config.get_text_config()
    template = chat_template_of(parts.processor) if parts.processor is not None else None
    return ModelIdentity(
        id=model_id(parts.name),
        architecture=type(model).__name__,
        layers=len(decoder_blocks(model)),
        hidden_size=int(config.hidden_size),
        fingerprint=fingerprint(model, parts.tokenizer, template or parts.tokenizer.chat_template, samples),
    )


def ending(configured: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: those that are configured, and the tokenizer's own."""
    tokens = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*tokens, tokenizer.eos_token_id] if token is not None)


def model_id(name: str) -> str:
    """Return a directory's own name, or the hub id as it is."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def fingerprint(
    model: PreTrainedModel,
    tokenizer: Any,
    chat_template: str | None,
    samples: Iterable[tuple[str, Tensor]],
) -> str:
    """Return a SHA-256 over configuration, vocabulary, chat template and a sample of the weights.

    Taken in the checkpoint's own dtype, before any conversion, so that the same checkpoint gives the
    same fingerprint on every device and at every serving dtype.
    """
    config = model.config.get_text_config().to_dict()
    described = {
        "architecture": type(model).__name__,
        "config": {key: config.get(key) for key in CONFIG_KEYS},
        "rope": config.get("rope_parameters"),
        "vocabulary": sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])),
        "chat_template": chat_template,
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, sample in samples:
        digest.update(name.encode())
        digest.update(sample.float().cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def weight_samples(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield evenly spaced values of every parameter, in the order of names."""
    for name, weight in sorted(model.named_parameters()):
        yield name, sampled(weight.detach())


def sampled(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    step = max(1, flat.numel() // SAMPLED_VALUES)
    return flat[::step][:SAMPLED_VALUES]
