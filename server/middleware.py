"""What stands around every route: request ids, counting, keys, and the limit on bodies."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.disconnects import CLIENT_LEFT
from server.intake import Intake
from server.keys import Key, opens
from server.metrics import Metrics
from server.problems import BodyTooLarge, BodyTooSlow, KeyRefused, problem_of
from steering.errors import SteeringError

logger = logging.getLogger(__name__)
OPEN_PATHS = frozenset({"/health", "/ready"})
USABLE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Envelope:
    """Gives each request an id, counts and times it, and answers when nothing else did.

    Once the intake is closed, each answer closes its connection: the next request belongs elsewhere.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, intake: Intake, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes
        self._metrics = metrics
        self._intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        started, status = time.perf_counter(), 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if self._intake.closed:
                    headers["connection"] = "close"
            await send(message)

        try:
            refuse_line_break(scope["path"])
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            status = CLIENT_LEFT  # while its body was read or its stream was sent: nobody waits for more
        except Exception as error:
            if not isinstance(error, SteeringError | HTTPException):
                logger.exception("request %s failed", request_id)
            if status and isinstance(error, SteeringError):
                logger.warning("request %s was cut off: %s", request_id, error.message)
                return
            if status:
                raise
            await problem_of(error).response()(scope, receive, send_marked)
        finally:
            self._count(scope, status, time.perf_counter() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._route_of(scope)
        self._metrics.requests.labels(route, str(status or "none")).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        level = logging.DEBUG if scope["path"] in OPEN_PATHS else logging.INFO
        logger.log(level, "%s %s %s %.2f s", scope["method"], route, status or "none", seconds)

    def _route_of(self, scope: Scope) -> str:
        """Return the path of a request's route, also where it was refused before it was routed."""
        found = scope.get("route")
        if found is None:
            matching = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
            found = next(matching, None)
        return getattr(found, "path", "unmatched")


def refuse_line_break(path: str) -> None:
    """Refuse a path that ends in one: Starlette's patterns would take it for the path without."""
    if path.endswith("\n"):
        raise HTTPException(HTTPStatus.NOT_FOUND)


def request_id_of(headers: Headers) -> str:
    """Return the caller's request id where it is safe to echo and log, else a new one."""
    own = headers.get("x-request-id", "")
    return own if USABLE.fullmatch(own) else uuid.uuid4().hex


class KeyCheck:
    """Lets a request through if it carries one of the keys; health checks need none.

    What is asked for is the path as it is routed, whatever Host or X-Forwarded-* say.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[Key]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        free = scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS
        if self._keys and not free and not self._carried(Headers(scope=scope)):
            raise KeyRefused("no valid API key; send it as 'Authorization: Bearer <key>'")
        await self._app(scope, receive, send)

    def _carried(self, headers: Headers) -> bool:
        shown = headers.getlist("authorization")
        scheme, _, key = shown[0].partition(" ") if len(shown) == 1 else ("", "", "")
        # Header bytes are read as Latin-1.
        return scheme.lower() == "bearer" and opens(self._keys, key.strip().encode("latin-1"))


class BodyLimit:
    """Counts and times a body while it is read, and refuses one that is too large or too slow."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > self._limit:
            self._refuse()
        deadline: float | None = asyncio.get_running_loop().time() + self._seconds
        read = 0

        async def receive_counted() -> Message:
            nonlocal read, deadline
            message = await self._received(receive, deadline)
            read += len(message.get("body", b""))
            if read > self._limit:
                self._refuse()
            if not message.get("more_body", False):
                deadline = None  # what comes next is that the client leaves
            return message

        await self._app(scope, receive_counted, send)

    async def _received(self, receive: Receive, deadline: float | None) -> Message:
        try:
            async with asyncio.timeout_at(deadline) as timeout:
                return await receive()
        except TimeoutError:
            if timeout.expired():
                raise BodyTooSlow(f"the body did not arrive within {self._seconds:g} s") from None
            raise

    def _refuse(self) -> None:
        raise BodyTooLarge(f"the body is larger than {self._limit} bytes, the most that this server reads")
