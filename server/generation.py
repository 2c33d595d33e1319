"""The jobs of one run: admitted together, generated side by side, closed whatever happens."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from server.engine.protocol import Engine, GenerationJob, TokenEvent
from server.run import Choice, Run

Events = AsyncGenerator[tuple[int, TokenEvent], None]
Streams = Sequence[AsyncGenerator[TokenEvent, None]]


async def admit(engine: Engine, jobs: Sequence[GenerationJob]) -> Streams:
    """Return a stream for every job, or raise what the engine raised and leave none behind."""
    streams: list[AsyncGenerator[TokenEvent, None]] = []
    try:
        for job in jobs:
            streams.append(engine.stream(job))  # noqa: PERF401 (what was admitted must be closed)
    except Exception:
        await close(streams)
        raise
    return streams


async def close(streams: Streams) -> None:
    for stream in streams:
        await stream.aclose()


async def merged(streams: Streams) -> Events:
    """Yield each stream's events with its index, as they come."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for event in only:
                yield 0, event
    else:
        async with aclosing(interleaved(streams)) as events:
            async for pair in events:
                yield pair


async def interleaved(streams: Streams) -> Events:
    arrivals: asyncio.Queue[tuple[int, TokenEvent | Exception | None]] = asyncio.Queue()
    pumps = [asyncio.create_task(pump(index, stream, arrivals)) for index, stream in enumerate(streams)]
    try:
        unfinished = len(streams)
        while unfinished:
            index, arrival = await arrivals.get()
            if arrival is None:
                unfinished -= 1
            elif isinstance(arrival, Exception):
                raise arrival
            else:
                yield index, arrival
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def pump(
    index: int,
    stream: AsyncGenerator[TokenEvent, None],
    arrivals: asyncio.Queue[tuple[int, TokenEvent | Exception | None]],
) -> None:
    try:
        async with aclosing(stream):
            async for event in stream:
                arrivals.put_nowait((index, event))
        arrivals.put_nowait((index, None))
    except Exception as error:
        arrivals.put_nowait((index, error))


async def collected(run: Run, events: Events) -> list[Choice]:
    """Return the whole choices."""
    choices = [Choice() for _ in run.jobs]
    async with aclosing(events):
        async for index, event in events:
            choices[index].add(event)
    return choices
