"""Server-sent events: how chunks are framed and sent."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol

from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.deadlines import PLACE, Deadline, in_time
from server.disconnects import ClientLeft, while_connected
from server.problems import Problem, RequestTimedOut, problem_of
from server.service import service_of
from steering.errors import SteeringError

logger = logging.getLogger(__name__)
# A comment, which clients skip: it shows whoever stands between that somebody is still there.
ALIVE = b": keep-alive\n\n"


async def nobody() -> Message:
    return {"type": "http.disconnect"}


class Framing(Protocol):
    """How a stream's bodies become events, how it says that it is cut short, and what comes last."""

    @property
    def last(self) -> bytes: ...

    def framed(self, body: dict[str, Any]) -> bytes: ...

    def cut_short(self, problem: Problem) -> bytes: ...


class Chunks:
    """The framing of chat and completions: nothing but data, and `[DONE]`."""

    last = b"data: [DONE]\n\n"

    def framed(self, body: dict[str, Any]) -> bytes:
        return framed(to_json(body))

    def cut_short(self, problem: Problem) -> bytes:
        return framed(problem.body())


CHUNKS = Chunks()


def framed(body: bytes) -> bytes:
    return b"data: " + body + b"\n\n"


async def framed_all(
    bodies: AsyncGenerator[dict[str, Any], None], framing: Framing
) -> AsyncGenerator[bytes, None]:
    """Yield an event for each body, what tells of an error that cuts them short, and what comes last."""
    try:
        async with aclosing(bodies):
            async for body in bodies:
                yield framing.framed(body)
    except Exception as error:
        if not isinstance(error, SteeringError):
            logger.exception("a stream failed")
        yield framing.cut_short(problem_of(error))
    if framing.last:
        yield framing.last


class EventStream(Response):
    """A response of events, sent as they come; `close` is awaited at its end, however that comes."""

    media_type = "text/event-stream"

    def __init__(
        self,
        bodies: AsyncGenerator[dict[str, Any], None],
        close: Callable[[], Awaitable[None]],
        framing: Framing = CHUNKS,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = framed_all(bodies, framing)
        self._framing = framing
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = ended(self._events, scope["state"][PLACE], self._framing)
        pause = service_of(Request(scope)).settings.sse_keep_alive
        old = scope["http_version"] == "1.0"
        sending = self._send_whole(send, events) if old else self._send_all(send, events, pause)
        try:
            await while_connected(receive, sending)
        except (ClientLeft, OSError) as error:
            raise ClientDisconnect from error  # nobody is left to be told, but it is counted
        finally:
            await self._close()

    async def _send_whole(self, send: Send, events: AsyncGenerator[bytes, None]) -> None:
        """Send all events at once, with their length: HTTP/1.0 knows no chunks."""
        async with aclosing(events):
            body = b"".join([event async for event in events])
        await Response(body, self.status_code, {"cache-control": "no-cache"}, self.media_type)(
            {"type": "http"}, nobody, send
        )

    async def _send_all(self, send: Send, events: AsyncGenerator[bytes, None], pause: float) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(events), kept_alive(send, pause) as send_event:
            async for event in events:
                await send_event(event)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def ended(
    events: AsyncGenerator[bytes, None], deadline: Deadline, framing: Framing
) -> AsyncGenerator[bytes, None]:
    """Yield the events; past the deadline what says so, and what comes last."""
    try:
        async with aclosing(events), aclosing(in_time(events, deadline)) as timely:
            async for event in timely:
                yield event
    except RequestTimedOut as error:
        yield framing.cut_short(problem_of(error)) + framing.last


@asynccontextmanager
async def kept_alive(send: Send, pause: float) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    """Yield what sends an event; a comment goes out whenever none did for `pause` seconds (0: never)."""
    loop = asyncio.get_running_loop()
    last = loop.time()

    async def send_body(body: bytes) -> None:
        nonlocal last
        await send({"type": "http.response.body", "body": body, "more_body": True})
        last = loop.time()

    async def keep() -> None:
        while pause:
            await asyncio.sleep(last + pause - loop.time())
            if loop.time() >= last + pause:
                await send_body(ALIVE)

    keeping = asyncio.create_task(keep())
    try:
        yield send_body
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
