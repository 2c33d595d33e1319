"""Which requests are under way, and whether more are taken in."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.types import ASGIApp, Receive, Scope, Send

from steering.errors import EngineUnavailable

# What whoever runs the server asks for; answered to the end.
OPERATIONS = frozenset({"/health", "/ready", "/metrics"})


class Intake:
    """closed: the server is to stop; what is under way ends, nothing else begins."""

    def __init__(self) -> None:
        self.closed = False
        self.under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        self.under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()

    async def idle(self, seconds: float) -> None:
        """Return once nothing is under way, after so many seconds at the latest."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)


class IntakeCheck:
    """Counts the requests that are under way, and refuses new ones once the intake is closed."""

    def __init__(self, app: ASGIApp, intake: Intake) -> None:
        self._app = app
        self._intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPERATIONS:
            await self._app(scope, receive, send)
            return
        if self._intake.closed:
            raise EngineUnavailable("the server is shutting down; send the request again")
        with self._intake.request():
            await self._app(scope, receive, send)
