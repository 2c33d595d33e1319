"""HTTP connections that no client holds by silence, by headers without end, or by not reading."""

import asyncio
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.problems import Problem

MOST_HEADERS = 128
MOST_HEAD_BYTES = 64 * 1024  # of the request line and all headers
HEAD_SECONDS = 30.0  # for a head to arrive, beyond the time that a connection may be idle
STALLED_SECONDS = 120.0  # for a client to read on
LINGER_SECONDS, LINGER_BYTES = 1.0, 256 * 1024  # for a client to stop sending, once it was refused

MALFORMED = Problem(400, "the request is not valid HTTP", "invalid_http")
BEHIND_BODY = Problem(
    400, "headers behind a body are not read; send steering and keys before it", "invalid_http"
)
UPGRADE = Problem(
    400, "this server speaks HTTP/1.1 alone; send the request without 'Upgrade'", "invalid_http"
)
TOO_LARGE = Problem(
    431,
    f"the request's headers are too large; this server reads {MOST_HEADERS} of them and "
    f"{MOST_HEAD_BYTES} bytes in all",
    "headers_too_large",
)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on heads, on the time for one, and on clients that do not read."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = False
        self._bytes = 0  # of what was parsed of this head
        self._unparsed = 0  # at most, of a line that has not ended
        self._refusal = MALFORMED
        self._deaf = False  # what else arrives is not read
        self._room = LINGER_BYTES  # for what else arrives after a refusal
        self._refused = False
        self._owing = False  # the refusal, once those before it have their answers
        self._waiting: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._waiting, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._linger(len(data))
            return
        began_before = self._in_head
        super().data_received(data)
        self._unparsed = self._unparsed + len(data) if began_before and self._in_head else 0
        if self._unparsed > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refusal = TOO_LARGE
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._in_head, self._bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; of those that may follow a chunked body, none says anything."""
        self._count(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)
            if name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise ValueError("a transfer encoding that is not read here")
        elif b"steering" in name.lower() or name.lower() == b"authorization":
            self._refusal = BEHIND_BODY
            raise ValueError("it would be read too late")

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.should_upgrade() and self.parser.get_method() == b"POST":
            self._refusal = UPGRADE
            raise ValueError("the parser takes its body for another protocol")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.cycle.more_body = False  # also where the answer did not wait for it

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if last and self._owing and not self.transport.is_closing():
            self._refuse()
        self._wait(self.timeout_keep_alive + HEAD_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed with OpenAI's error object, in its turn, and close the connection.

        Behind a whole request it takes nothing from its answer: a broken body is told after it, a broken head
        not at all.
        """
        broken = self.cycle is not None and self.cycle.more_body
        if self._unoccupied and not broken:
            self._refuse()
        elif broken and self.cycle.response_started:
            self._break_off()
        elif broken and not self.pipeline:
            self.cycle.disconnected = True  # whatever still reads the broken body learns it, and says nothing
            self.cycle.message_event.set()
            self._refuse()
        else:
            self._deaf = True
            self.cycle.keep_alive = False
            if broken:
                self.pipeline.popleft()
                self._owing = True

    def _break_off(self) -> None:
        if self.cycle.response_complete:
            self.transport.close()
        else:
            self.transport.abort()

    def _refuse(self) -> None:
        body = self._refusal.body()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", uuid.uuid4().hex.encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[self._refusal.status] + lines + b"\r\n" + body)
        self._deaf = self._refused = True
        if self.transport.can_write_eof():
            # To close over what the client still sends would reset the connection, and the answer with it.
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def _linger(self, read: int) -> None:
        if self._refused:
            self._room -= read
            if self._room < 0:
                self.transport.close()

    @property
    def _unoccupied(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _count(self, read: int) -> None:
        self._bytes += read
        if self._bytes > MOST_HEAD_BYTES or len(self.headers) > MOST_HEADERS:
            self._refusal = TOO_LARGE
            raise ValueError("the head is too large")  # ends the parsing; send_400_response says why

    def _wait(self, seconds: float) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self._unoccupied:
            self.transport.close()
