"""What a checkpoint is, told without loading it: for engines that load the weights themselves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.utils.hub import cached_file

from steering.errors import ModelUnavailable
from steering.loading import (
    FAILURES,
    Parts,
    ending,
    explain,
    identify,
    read_parts,
    sampled,
    weight_samples,
)
from steering.types import ModelIdentity

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model's parts and identity; end_tokens: those that end an answer."""

    parts: Parts
    identity: ModelIdentity
    end_tokens: frozenset[int]


def read_checkpoint(source: str | None, cache_dir: Path) -> Checkpoint:
    """Tell what a directory, a hub id or with None the embedded model holds; raises ModelUnavailable.

    Of the weights only the sample is read that the fingerprint needs, where the files name them as the
    model does; else the model is loaded once and let go.
    """
    parts = read_parts(source, cache_dir)
    try:
        with torch.device("meta"):
            model = parts.family.from_config(parts.config, dtype=parts.config.dtype)
        files = weight_files(parts.path)
        names = {name for name, _ in model.named_parameters()}
        if names <= files.keys():
            identity = identify(parts, model, stored_samples(model, files))
        else:
            model = parts.family.from_pretrained(parts.path, dtype="auto")
            identity = identify(parts, model, weight_samples(model))
        return Checkpoint(parts, identity, end_tokens(parts))
    except FAILURES as error:
        raise ModelUnavailable(explain(parts.name, error)) from error


def weight_files(path: str) -> dict[str, str]:
    """Return the file of each stored tensor, by the tensor's name; nothing where they are no safetensors."""
    index = found(path, INDEX)
    if index is not None:
        named: dict[str, str] = json.loads(Path(index).read_text("utf-8"))["weight_map"]
        places = {file: found(path, file) for file in set(named.values())}
        return {name: place for name, file in named.items() if (place := places[file]) is not None}
    whole = found(path, WHOLE)
    if whole is None:
        return {}
    with safe_open(whole, framework="pt") as stored:
        return dict.fromkeys(stored.keys(), whole)


def found(path: str, name: str) -> str | None:
    """Return where a file of the checkpoint lies, fetching it from the hub if need be."""
    place: str | None = cached_file(
        path, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return place


def stored_samples(model: nn.Module, files: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield what `weight_samples` yields once the model is loaded, in the dtype that it is loaded in."""
    opened: dict[str, Any] = {}
    for name, weight in sorted(model.named_parameters()):
        file = files[name]
        if file not in opened:
            opened[file] = safe_open(file, framework="pt")
        stored = opened[file].get_tensor(name)
        if stored.shape != weight.shape:
            raise ValueError(f"{name} is stored as {list(stored.shape)}, not {list(weight.shape)}")
        yield name, sampled(stored).to(weight.dtype)


def end_tokens(parts: Parts) -> frozenset[int]:
    """Return the tokens that end an answer, by the generation settings and the tokenizer."""
    try:
        configured = GenerationConfig.from_pretrained(parts.path).eos_token_id
    except OSError:  # there are none
        configured = parts.config.get_text_config().eos_token_id
    return ending(configured, parts.tokenizer)
