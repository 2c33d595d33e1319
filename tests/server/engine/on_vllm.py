"""An engine on vLLM that a module's tests share, in an event loop of its own; skipped where vLLM is not."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from server.config import Settings
from server.engine.protocol import GenerationJob, TokenEvent
from server.engine.vllm_config import create_engine
from server.engine.vllm_engine import VllmEngine
from steering.loading import LoadedModel, load_model
from steering.vllm.plugin import NAME
from tests.tiny_models import save_tiny

HEAD_DIM = 32  # the smallest that vLLM's attention takes on a CPU
R = TypeVar("R")


class OnVllm:
    """The engine, the same model loaded for the reference, and the loop that both are asked from."""

    def __init__(self, engine: VllmEngine, loaded: LoadedModel, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.loaded = loaded
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, R], seconds: float = 240) -> R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def texts(self, jobs: Sequence[GenerationJob]) -> list[str]:
        """Return the answers of jobs that run at one time."""
        return ["".join(event.text for event in events) for events in self.events(jobs)]

    def events(self, jobs: Sequence[GenerationJob]) -> list[list[TokenEvent]]:
        async def ask() -> list[list[TokenEvent]]:
            return await asyncio.gather(*(answer(self.engine, job) for job in jobs))

        return self.run(ask())


async def answer(engine: VllmEngine, job: GenerationJob) -> list[TokenEvent]:
    return [event async for event in engine.stream(job)]


@contextmanager
def on_vllm(
    folder: Path,
    family: str = "llama",
    by_table: bool = False,
    eager: bool = True,
    save: Callable[[str, Path, int], object] = save_tiny,
    **settings: Any,
) -> Iterator[OnVllm]:
    """Serve a tiny model; by_table: steer as CUDA graphs would be steered; save: what writes the model."""
    save(family, folder, HEAD_DIM)
    with serving(folder, by_table, enforce_eager=eager, **settings) as served:
        yield served


@contextmanager
def serving(
    folder: Path,
    by_table: bool = False,
    max_profiles: int = 16,
    prefill_chunk: int | None = None,
    **arguments: Any,
) -> Iterator[OnVllm]:
    settings = Settings(
        model=str(folder),
        cache_dir=folder,
        engine="vllm",
        max_batch_size=16,
        max_waiting=64,
        max_profiles=max_profiles,
        prefill_chunk=prefill_chunk,
        kv_cache_gb=0.1,
        engine_arg={"block_size": 32, **arguments},
    )
    engine = create_engine(settings)
    if by_table:
        engine.config.additional_config[NAME]["graphs"] = True
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    served = OnVllm(engine, load_model(str(folder), folder, device="cpu"), loop)
    try:
        served.run(engine.start())
        yield served
    finally:
        served.run(engine.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
