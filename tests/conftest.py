"""Fixtures that all tests share: tiny models on disk and in memory."""

from collections.abc import Callable

import pytest
import torch

from steering.loading import LoadedModel
from tests.tiny_models import load_tiny
from tests.tiny_vlms import load_tiny_vlm

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that of two processes none is left with it alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Return a function from family to its tiny model, loaded once."""
    loaded: dict[str, LoadedModel] = {}

    def load(family: str) -> LoadedModel:
        if family not in loaded:
            loaded[family] = load_tiny(family, tmp_path_factory.mktemp(family))
        return loaded[family]

    return load


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Return a function from family to its tiny vision-language model, loaded once."""
    loaded: dict[str, LoadedModel] = {}

    def load(family: str) -> LoadedModel:
        if family not in loaded:
            loaded[family] = load_tiny_vlm(family, tmp_path_factory.mktemp(family))
        return loaded[family]

    return load
