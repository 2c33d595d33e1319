"""From settings to a running process: the socket, the model, the banner, uvicorn, and a clean end."""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil
import uvicorn
from fastapi import FastAPI
from rich.console import Console

from server.app import create_app
from server.config import Settings
from server.connections import BoundedProtocol
from server.engine.protocol import Engine
from server.engine.transformers_engine import create_engine
from server.routes.models import compatible_profiles
from server.service import Service
from steering.errors import ModelUnavailable, SteeringError
from vector_store.local import open_store

logger = logging.getLogger(__name__)
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# The smallest of pictures: a grey PNG.
GREY = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAAAAABWESUoAAAAGElEQV"
    "R42mNsYMAPmBhGFYwqGFUwQhUAAJe+AMD8WknZAAAAAElFTkSuQmCC"
)
SEE = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{GREY}"}},
    {"type": "text", "text": "what is in the image?"},
]
TRACKER = "from multiprocessing.resource_tracker import"
LAST_SECONDS = 5  # for the answers to end after the engine closed


class CannotServe(Exception):
    """The server cannot start; the message says why."""


class Server(uvicorn.Server):
    """A uvicorn server that says when it accepts requests, and whose requests end properly with it.

    Told to stop, it goes on listening, so that new requests hear a 503 and no closed door, until those
    under way have ended or the grace is over; then the engine closes under what is left, so that each
    answer still ends, with an error.
    """

    def __init__(self, config: uvicorn.Config, service: Service, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine = service.engine
        self._intake = service.intake
        self._grace = service.settings.grace
        self._ends_with_engine = service.settings.exit_when_dead
        self._announce = announce
        self.died_of: str | None = None  # why the engine died, where the server is to end with it

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take nothing in from now on and say what is waited for; asked a second time, stop at once.

        While the engine still starts nobody waits: it ends where it is.
        """
        if not self.started:
            end_now()
        if self.should_exit:
            os._exit(128 + sig)
        self._intake.closed = True
        left = self._intake.under_way
        waited = f", waiting up to {self._grace:g} s for {left} request{'s' if left > 1 else ''}"
        print(f"stopping{waited if left else ''}; once more stops at once", file=sys.stderr, flush=True)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await self._engine.start()
        except SteeringError as error:
            raise CannotServe(error.message) from error
        try:
            await super().startup(sockets)
        except OSError as error:
            raise CannotServe(f"cannot listen: {error.strerror}; choose another --port") from error
        self._announce()

    async def on_tick(self, counter: int) -> bool:
        found = self._engine.health()
        if self._ends_with_engine and found.state == "dead" and not self.should_exit:
            self.died_of = found.reason or "it gave no reason"
        return await super().on_tick(counter) or self.died_of is not None

    async def main_loop(self) -> None:
        await super().main_loop()
        self._intake.closed = True
        await self._intake.idle(self._grace)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self._engine.close())
        await super().shutdown(sockets)
        await closing


def end_now() -> None:
    """End while the engine starts, and its processes, which would load their model first if they were asked.

    Python's own trackers of shared memory stay to clean up; they end when nobody is left.
    """
    for process in psutil.Process().children(recursive=True):
        command: list[str] = []
        with suppress(psutil.Error):
            command = process.cmdline()
        with suppress(psutil.Error):
            if not any(TRACKER in word for word in command):
                process.kill()
    os._exit(0)


def serve_forever(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; raises CannotServe."""
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    # It would log every address that an image is fetched from, signatures and all.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if not settings.keys and settings.host not in LOOPBACK:
        logger.warning("whoever reaches %s may ask: set --api-key or --api-key-file", settings.host)
    with ending_cleanly(), bound(settings.host, settings.port) as listener:
        serve_app(load_app(settings), listener)


def serve_app(app: FastAPI, listener: socket.socket) -> None:
    service: Service = app.state.service
    server = Server(uvicorn_config(app, service.settings), service, lambda: announce(app, listener))
    server.run([listener])
    if server.died_of is not None:
        raise CannotServe(f"the engine died: {server.died_of}")


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Make SIGTERM and SIGINT end the process with status 0, while loading and after serving."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Take the address before the slow work; nothing is accepted on it yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotServe(f"cannot listen on {host}: {error.strerror}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise CannotServe(
                f"cannot listen on {host}:{port}: {error.strerror}; "
                "choose another --port (make serve: PORT=...)"
            ) from error
        yield listener


def load_app(settings: Settings) -> FastAPI:
    try:
        return create_app(settings, engine_of(settings), open_store(settings.store))
    except SteeringError as error:
        raise CannotServe(error.message) from error


def engine_of(settings: Settings) -> Engine:
    """Return the engine that the settings name, not yet started; raises ModelUnavailable."""
    if settings.engine == "vllm":
        from server.engine import vllm_config  # what it needs is in an environment of its own

        return vllm_config.create_engine(settings)
    if settings.engine_arg:
        raise ModelUnavailable("--engine-arg is for --engine vllm")
    return create_engine(settings)


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11" if sys.platform == "win32" else BoundedProtocol,
        proxy_headers=False,
        log_config=None,
        log_level="debug" if settings.log_level == "debug" else "warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=settings.idle_timeout,
        timeout_graceful_shutdown=LAST_SECONDS,
    )


def announce(app: FastAPI, listener: socket.socket) -> None:
    """Print what is served, where, which profiles fit, and a request to try."""
    service: Service = app.state.service
    card, name = service.engine.card, service.translator.served.name
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    profiles = compatible_profiles(service)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"grainserve serves {name} on {card.device} in {card.dtype}, context {card.context_length}")
    console.print(f"address   {address}/v1")
    store = service.settings.store
    console.print(f"profiles  {', '.join(profiles) or 'none that fits this model'}")
    there = "" if store.is_dir() else " (not there yet)"
    console.print(f"store     {store}{there}")
    asked = SEE if card.pictured else "How was your day?"
    console.print(f"try       {example(address, name, profiles, bool(service.settings.keys), asked)}")


def example(
    address: str, model: str, profiles: list[str], keyed: bool, asked: object = "How was your day?"
) -> str:
    steering = {"steering": {"profile": profiles[0], "strength": 1.0}} if profiles else {}
    message = {"role": "user", "content": asked}
    body = json.dumps({"model": model, "messages": [message], "max_tokens": 64, "temperature": 0, **steering})
    key = " -H 'Authorization: Bearer <key>'" if keyed else ""
    quoted_body = body.replace("'", "'\\''")
    return f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{quoted_body}'"
