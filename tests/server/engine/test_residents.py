"""Vectors are loaded before a request runs, and stay while it does."""

import asyncio

import pytest

from server.engine.residents import Residents
from steering.types import SteeringVectors


def vectors(name: str) -> SteeringVectors:
    return SteeringVectors(name, 1, name, {})


class Workers:
    """Remembers what it was told to hold; fails to load what is called `broken`."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.most = 0

    async def load(self, of: SteeringVectors) -> None:
        await asyncio.sleep(0)
        if of.digest == "broken":
            raise RuntimeError("no room")
        self.held.append(of.digest)
        self.most = max(self.most, len(self.held))

    async def evict(self, digest: str) -> None:
        await asyncio.sleep(0)
        self.held.remove(digest)


def test_the_least_recently_used_makes_room() -> None:
    async def main() -> None:
        workers = Workers()
        residents = Residents(2, workers.load, workers.evict)
        for name in ("a", "b", "a", "c"):
            async with residents.holding([vectors(name)]):
                assert name in workers.held
        assert workers.held == ["a", "c"]

    asyncio.run(main())


def test_a_request_waits_until_there_is_room_and_none_is_lost() -> None:
    async def main() -> None:
        workers = Workers()
        residents = Residents(3, workers.load, workers.evict)

        async def request(number: int) -> None:
            wanted = [vectors(f"{(number + step) % 9}") for step in range(1 + number % 3)]
            async with residents.holding(wanted):
                await asyncio.sleep(0.001)
                assert {each.digest for each in wanted} <= set(workers.held)

        await asyncio.wait_for(asyncio.gather(*map(request, range(100))), 10)
        assert workers.most == 3

    asyncio.run(main())


def test_what_could_not_be_loaded_or_was_given_up_holds_nothing() -> None:
    async def main() -> None:
        workers = Workers()
        residents = Residents(1, workers.load, workers.evict)
        with pytest.raises(RuntimeError):
            async with residents.holding([vectors("broken")]):
                pass
        async with residents.holding([vectors("a")]):
            waiting = asyncio.create_task(hold(residents, "b"))
            await asyncio.sleep(0.01)
            waiting.cancel()
        await asyncio.wait_for(hold(residents, "c"), 5)
        assert workers.held == ["c"]

    asyncio.run(main())


async def hold(residents: Residents, name: str) -> None:
    async with residents.holding([vectors(name)]):
        pass
