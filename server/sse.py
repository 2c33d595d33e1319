"""Server-sent events: how chunks are framed and sent."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.disconnects import ClientLeft, while_connected
from server.problems import problem_of
from steering.errors import SteeringError

logger = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"


async def nobody() -> Message:
    return {"type": "http.disconnect"}


def framed(body: bytes) -> bytes:
    return b"data: " + body + b"\n\n"


async def framed_all(bodies: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """Yield an event for each body, one for an error that cuts them short, and `[DONE]`."""
    try:
        async with aclosing(bodies):
            async for body in bodies:
                yield framed(to_json(body))
    except Exception as error:
        if not isinstance(error, SteeringError):
            logger.exception("a stream failed")
        yield framed(problem_of(error).body())
    yield DONE


class EventStream(Response):
    """A response of events, sent as they come; `close` is awaited at its end, however that comes."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            old = scope["http_version"] == "1.0"
            await while_connected(receive, self._send_whole(send) if old else self._send_all(send))
        except (ClientLeft, OSError):
            pass  # nobody is left to be told
        finally:
            await self._close()

    async def _send_whole(self, send: Send) -> None:
        """Send all events at once, with their length: HTTP/1.0 knows no chunks."""
        async with aclosing(self._events) as events:
            body = b"".join([event async for event in events])
        await Response(body, self.status_code, {"cache-control": "no-cache"}, self.media_type)(
            {"type": "http"}, nobody, send
        )

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
