"""Fixtures of the server's tests: a running server on the scripted engine, and a way to start others."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.server.profiles import small_store
from tests.server.running import Running, running
from vector_store.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return small_store()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server that the module's tests share."""
    with running(small_store()) as shared:
        yield shared


@pytest.fixture
def start(store: MemoryStore) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a server of its own for the test."""
    with ExitStack() as stack:

        def begin(engine: Any = None, **settings: Any) -> Running:
            return stack.enter_context(running(store, engine, **settings))

        yield begin
