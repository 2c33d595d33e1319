"""What the store's tests share: small manifests and deltas, made by hand."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vector_store.manifest import Manifest, ModelRecord

HIDDEN_SIZE = 4
NOBODY = 65534


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    def make(name: str = "truthful", layers: tuple[int, ...] = (1, 3), **fields: object) -> Manifest:
        model = ModelRecord(
            id="tiny", architecture="Tiny", layers=6, hidden_size=HIDDEN_SIZE, fingerprint="ab" * 32
        )
        return Manifest(**{"name": name, "model": model, "layers": layers, "method": "grains"} | fields)

    return make


@pytest.fixture(scope="session")
def make_deltas() -> Callable[..., dict[int, Tensor]]:
    def make(seed: int = 0, layers: tuple[int, ...] = (1, 3)) -> dict[int, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {layer: torch.randn(HIDDEN_SIZE, generator=generator) for layer in layers}

    return make


@pytest.fixture
def unprivileged_root() -> Iterator[Path]:
    """Yield a directory whose permissions hold for this process, which is not root meanwhile."""
    with tempfile.TemporaryDirectory() as directory:
        user = os.geteuid()
        if user == 0:
            os.chown(directory, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield Path(directory)
        finally:
            os.seteuid(user)
