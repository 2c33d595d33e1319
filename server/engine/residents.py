"""Which vectors an engine elsewhere holds: loaded before a request names them, never evicted under one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from steering.types import SteeringVectors


class Residents:
    """At most `capacity` vectors, the least recently used making room; a request waits until there is some.

    load and evict act on every worker, and have acted on all of them when they return.
    """

    def __init__(
        self,
        capacity: int,
        load: Callable[[SteeringVectors], Awaitable[None]],
        evict: Callable[[str], Awaitable[None]],
    ) -> None:
        self._capacity = capacity
        self._load = load
        self._evict = evict
        self._loaded: dict[str, None] = {}  # digests, least recently used first
        self._holders: Counter[str] = Counter()
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    @asynccontextmanager
    async def holding(self, vectors: Sequence[SteeringVectors]) -> AsyncIterator[None]:
        """Have the vectors loaded while the block runs."""
        held: list[str] = []
        try:
            async with self._turn:
                for each in vectors:
                    await self._bring(each)
                    self._holders[each.digest] += 1
                    held.append(each.digest)
            yield
        finally:
            self._holders.subtract(held)
            self._left.set()

    async def _bring(self, vectors: SteeringVectors) -> None:
        if vectors.digest in self._loaded:
            del self._loaded[vectors.digest]
        else:
            while len(self._loaded) >= self._capacity:
                await self._make_room()
            await self._load(vectors)
        self._loaded[vectors.digest] = None

    async def _make_room(self) -> None:
        self._left.clear()
        idle = next((digest for digest in self._loaded if not self._holders[digest]), None)
        if idle is None:
            await self._left.wait()
            return
        del self._loaded[idle]
        await self._evict(idle)
