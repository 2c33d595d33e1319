"""Fixtures of the clients' tests: a server whose scripted model does what it is asked."""

from collections.abc import Iterator

import pytest

from server.engine.scripted import ScriptedEngine
from tests.clients.assistant import obey
from tests.server.profiles import small_store
from tests.server.running import Running, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(small_store(), ScriptedEngine(obey)) as shared:
        yield shared
