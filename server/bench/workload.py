"""What is asked: prompts of known lengths, and profiles to steer with."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from server.prompts import prompt_of
from steering.loading import LoadedModel
from steering.types import ModelIdentity
from vector_store.local import LocalStore
from vector_store.manifest import Manifest, ModelRecord

WORDS = ("river", "stone", "lamp", "garden", "music", "winter", "bread", "letter", "window", "cloud")
SHORTEST, LONGEST = 16, 48
STEERED_LAYERS = 2
SHIFT = 0.05


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as messages for the server and as the token ids that they become, for the yardstick."""

    messages: list[dict[str, str]]
    tokens: tuple[int, ...]


def make_prompts(tokenizer: Any, count: int, seed: int) -> list[Prompt]:
    """Return prompts whose lengths are spread evenly over 16 to 48 tokens."""
    generator = random.Random(seed)
    spread = LONGEST - SHORTEST
    wanted = [SHORTEST + (place * spread) // max(1, count - 1) for place in range(count)]
    generator.shuffle(wanted)
    return [prompt_of_length(tokenizer, length, generator) for length in wanted]


def prompt_of_length(tokenizer: Any, length: int, generator: random.Random) -> Prompt:
    words = [generator.choice(WORDS)]
    while True:
        prompt = as_prompt(tokenizer, words)
        if len(prompt.tokens) >= length:
            return prompt
        words.append(generator.choice(WORDS))


def as_prompt(tokenizer: Any, words: Sequence[str]) -> Prompt:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": " ".join(words)}]
    return Prompt(messages, prompt_of(messages, tokenizer))


def register_profiles(store: Path, loaded: LoadedModel, count: int, advance: Callable[[], None]) -> list[str]:
    """Publish random profiles for the model on two middle layers and return their names."""
    local, names = LocalStore(store), [f"random-{number:04}" for number in range(count)]
    middle = loaded.identity.layers // 2
    layers = tuple(range(middle, min(middle + STEERED_LAYERS, loaded.identity.layers)))
    generator = torch.Generator().manual_seed(0)
    for name in names:
        deltas = {
            layer: torch.randn(loaded.identity.hidden_size, generator=generator) * SHIFT for layer in layers
        }
        local.publish(random_manifest(name, loaded.identity, layers), deltas, {})
        advance()
    return names


def random_manifest(name: str, model: ModelIdentity, layers: tuple[int, ...]) -> Manifest:
    record = ModelRecord(
        id=model.id,
        architecture=model.architecture,
        layers=model.layers,
        hidden_size=model.hidden_size,
        fingerprint=model.fingerprint,
    )
    return Manifest(name=name, model=record, layers=layers, method="random", description="For the benchmark.")
