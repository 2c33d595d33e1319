"""The time that a request may take: whole answers end with an error, streams with an event that says so."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.problems import RequestTimedOut

# What an answer that has begun gets beyond its time, to say that it is over.
LAST_WORDS = 5.0
PLACE = "deadline"


@dataclass(frozen=True, slots=True)
class Deadline:
    """at: by the event loop's clock; seconds: how long the request had."""

    at: float
    seconds: float

    @property
    def error(self) -> RequestTimedOut:
        return RequestTimedOut(
            f"the answer took longer than {self.seconds:g} s, the most that this server gives a request; "
            "ask for fewer tokens"
        )


class DeadlineCheck:
    """Cancels a request that is not answered in time, and leaves its deadline where a stream finds it."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deadline = Deadline(asyncio.get_running_loop().time() + self._seconds, self._seconds)
        scope.setdefault("state", {})[PLACE] = deadline

        async def send_begun(message: Message) -> None:
            if message["type"] == "http.response.start" and not timeout.expired():
                timeout.reschedule(deadline.at + LAST_WORDS)
            await send(message)

        try:
            async with asyncio.timeout_at(deadline.at) as timeout:
                await self._app(scope, receive, send_begun)
        except TimeoutError:
            if timeout.expired():
                raise deadline.error from None
            raise


async def in_time(events: AsyncGenerator[bytes, None], deadline: Deadline) -> AsyncGenerator[bytes, None]:
    """Yield the events; raises RequestTimedOut, the events cancelled, where the next one is late."""
    while True:
        try:
            async with asyncio.timeout_at(deadline.at) as timeout:
                event = await anext(events, None)
        except TimeoutError:
            if timeout.expired():
                raise deadline.error from None
            raise
        if event is None:
            return
        yield event
