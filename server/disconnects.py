"""Work that ends when its client leaves."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")
CLIENT_LEFT = 499  # what logs and metrics call it since nginx


class ClientLeft(Exception):
    """The client closed its connection; nobody waits for the answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the work's result; if the client leaves first, cancel the work and raise ClientLeft.

    The request's body must have been read: what `receive` says next is that the client left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(client_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
