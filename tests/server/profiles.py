"""A store in memory with small profiles: two for the scripted model, one for another."""

from dataclasses import asdict, replace

import torch

from server.engine.scripted import IDENTITY
from steering.types import ModelIdentity, Positions
from vector_store.manifest import Manifest, ModelRecord
from vector_store.memory import MemoryStore
from vector_store.store import VectorStore

OTHER = replace(IDENTITY, id="other-model", fingerprint="ab" * 32)


def small_store() -> MemoryStore:
    store = MemoryStore()
    publish(store, "cheerful", (1, 2))
    publish(store, "cheerful", (1, 2, 3))
    publish(store, "concise", (2,), positions="generated")
    publish(store, "foreign", (0,), model=OTHER)
    return store


def publish(
    store: VectorStore,
    name: str,
    layers: tuple[int, ...],
    positions: Positions = "all",
    model: ModelIdentity = IDENTITY,
    tokens: str = "all",
) -> None:
    manifest = Manifest.model_validate(
        {
            "name": name,
            "model": ModelRecord(**asdict(model)),
            "layers": layers,
            "positions": positions,
            "tokens": tokens,
            "method": "grains",
            "description": f"makes answers {name}",
            "evidence": {"effect": 0.5},
            "calibration": {"dose": 2.0},
        }
    )
    deltas = {layer: torch.full((model.hidden_size,), 0.1 + layer) for layer in layers}
    store.publish(manifest, deltas, {})
