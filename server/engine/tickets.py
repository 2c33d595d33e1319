"""A job in the engine's hands, and its results on their way back to the event loop that asked."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from server.engine.protocol import TokenEvent
from server.engine.running import RunningRequest
from steering.errors import SteeringError

Result = TokenEvent | SteeringError


class Ticket:
    """A job in the engine's hands, and the queue that its results come back on."""

    def __init__(self, request: RunningRequest, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.loop = loop
        self.results: asyncio.Queue[Result] = asyncio.Queue()


class Results(AsyncGenerator[TokenEvent, None]):
    """The events of one job, as they come.

    A plain async generator that was never started does nothing when it is closed; this one leaves.
    """

    def __init__(self, results: asyncio.Queue[Result], abandon: Callable[[], None]) -> None:
        self._results = results
        self._abandon = abandon
        self._ended = False

    async def asend(self, _value: None) -> TokenEvent:
        if self._ended:
            raise StopAsyncIteration
        result = await self._results.get()
        if isinstance(result, SteeringError):
            self._ended = True
            raise result
        self._ended = result.finish is not None
        return result

    async def athrow(self, *error: Any) -> TokenEvent:
        await self.aclose()
        raise error[0]

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = True
            self._abandon()


def put_all(results: list[tuple[Ticket, Result]]) -> None:
    for ticket, result in results:
        ticket.results.put_nowait(result)
