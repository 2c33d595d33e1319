"""The server on a real socket, in a thread, on the scripted engine."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from server.app import create_app
from server.config import Settings
from server.engine.protocol import Engine
from server.engine.scripted import ScriptedEngine
from server.serving import Server, bound, uvicorn_config
from vector_store.store import VectorStore

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


@dataclass
class Running:
    app: FastAPI
    engine: Any
    url: str
    client: httpx.Client

    def chat(self, **fields: Any) -> httpx.Response:
        return self.client.post(CHAT, json={**HELLO, **fields})

    def answer(self, **fields: Any) -> dict[str, Any]:
        response = self.chat(**fields)
        assert response.status_code == 200, response.text
        return response.json()

    def chunks(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the chunks of a stream that ended well."""
        response = self.chat(stream=True, **fields)
        assert response.status_code == 200, response.text
        *bodies, done = events_of(response.text)
        assert done == "[DONE]"
        return [json.loads(body) for body in bodies]

    def refusal(self, **fields: Any) -> dict[str, Any]:
        response = self.chat(**fields)
        assert response.status_code >= 400, response.text
        return error_of(response)


def events_of(text: str) -> list[str]:
    assert text.endswith("\n\n")
    events = text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event.removeprefix("data: ") for event in events]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error object, which has OpenAI's four keys and nothing else."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return {**body["error"], "status": response.status_code}


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(delta.get("content") or "" for delta in deltas)


@contextmanager
def running(store: VectorStore, engine: Engine | None = None, **settings: Any) -> Iterator[Running]:
    chosen = Settings(**{"grace": 0.5, **settings})
    engine = engine or ScriptedEngine()
    app = create_app(chosen, engine, store)
    with bound("127.0.0.1", 0) as listener:
        server = Server(uvicorn_config(app, chosen), app.state.service, lambda: None)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with serving(server, listener), httpx.Client(base_url=url, timeout=20) as client:
            yield Running(app, engine, url, client)


@contextmanager
def serving(server: Server, listener: socket.socket) -> Iterator[None]:
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(happened: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that happens in another thread."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
