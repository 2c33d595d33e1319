"""A tiny model and preference pairs for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steering.building.pairs import Pair, TokenisedPair, tokenise_pairs
from steering.building.readers import read_pairs
from steering.loading import LoadedModel


@pytest.fixture(scope="session")
def llama(tiny_model: Callable[[str], LoadedModel]) -> LoadedModel:
    return tiny_model("llama")


@pytest.fixture
def pair_record() -> Callable[..., dict[str, Any]]:
    """Return a function that makes one line of a pairs file."""

    def make(prompt: str, preferred: str, dispreferred: str) -> dict[str, Any]:
        return {
            "input": {"messages": [{"role": "user", "content": prompt}]},
            "preferred_output": [{"role": "assistant", "content": preferred}],
            "non_preferred_output": [{"role": "assistant", "content": dispreferred}],
        }

    return make


@pytest.fixture
def pairs_path(tmp_path: Path, pair_record: Callable[..., dict[str, Any]]) -> Path:
    """Return a file of twelve pairs."""
    records = [pair_record(f"say {i}", f"yes, {i}!", f"no, not {i * i}.") for i in range(12)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.fixture
def raw(pairs_path: Path) -> tuple[Pair, ...]:
    return read_pairs(pairs_path).pairs


@pytest.fixture
def tokenised(llama: LoadedModel, raw: tuple[Pair, ...]) -> tuple[TokenisedPair, ...]:
    return tokenise_pairs(llama, raw)
