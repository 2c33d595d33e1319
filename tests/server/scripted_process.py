"""A server process on the scripted engine: python -m tests.server.scripted_process DELAY GRACE."""

import sys

from server.app import create_app
from server.config import Settings
from server.engine.scripted import ScriptedEngine
from server.serving import bound, ending_cleanly, serve_app
from vector_store.memory import MemoryStore


def main(delay: float, grace: float) -> None:
    with ending_cleanly(), bound("127.0.0.1", 0) as listener:
        settings = Settings(port=0, grace=grace, api_key=())
        serve_app(create_app(settings, ScriptedEngine(delay=delay), MemoryStore()), listener)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
