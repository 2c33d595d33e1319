"""The engine's front: admission, cancellation, failure and shutdown."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import torch

from server.engine.batcher import MOST_FAILURES, BatchLimits
from server.engine.protocol import GenerationJob, SamplingParams, TokenEvent
from server.engine.transformers_engine import TransformersEngine
from steering.errors import EngineOverloaded, EngineUnavailable, GenerationFailed
from steering.loading import LoadedModel
from tests.server.engine.reference import greedy_job, naive_text, random_vectors, term
from tests.tiny_models import load_tiny

Loader = Callable[[str], LoadedModel]


@asynccontextmanager
async def running(
    loaded: LoadedModel, slots: int = 4, max_waiting: int = 8, limits: BatchLimits | None = None
) -> AsyncIterator[TransformersEngine]:
    limits = limits or BatchLimits(slots, 32, slots * 256, 256)
    engine = TransformersEngine(loaded, limits, max_waiting)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def answer(engine: TransformersEngine, job: GenerationJob) -> list[TokenEvent]:
    return [event async for event in engine.stream(job)]


async def idle(engine: TransformersEngine, limit: float = 5.0) -> None:
    deadline = time.monotonic() + limit
    while engine.health().running or engine.health().waiting:
        assert time.monotonic() < deadline, "requests stayed behind"
        await asyncio.sleep(0.005)


def assert_concurrent_jobs_answer_as_alone(loaded: LoadedModel) -> None:
    vectors = random_vectors("calm", loaded, [1, 2])
    jobs = [greedy_job(f"{i}", range(3 + i, 20), 10, term(vectors, i / 4)) for i in range(6)]

    async def main() -> list[list[TokenEvent]]:
        async with running(loaded) as engine:
            return await asyncio.gather(*(answer(engine, job) for job in jobs))

    for job, events in zip(jobs, asyncio.run(main()), strict=True):
        text = "".join(event.text for event in events)
        assert text == naive_text(loaded, job)
        assert [event.finish for event in events] == [None] * 9 + ["length"]
        assert events[-1].completion_tokens == 10


def test_concurrent_jobs_answer_as_each_would_alone(tiny_model: Loader) -> None:
    assert_concurrent_jobs_answer_as_alone(tiny_model("llama"))


def test_a_full_queue_is_refused_with_a_time_to_come_back(tiny_model: Loader) -> None:
    async def main() -> None:
        async with running(tiny_model("llama"), slots=1, max_waiting=2) as engine:
            streams = [engine.stream(greedy_job(str(i), [1, 2, 3], 200)) for i in range(2)]
            with pytest.raises(EngineOverloaded) as refusal:
                streams.extend(engine.stream(greedy_job(f"more {i}", [1, 2, 3], 200)) for i in range(20))
            assert refusal.value.retry_after > 0
            for stream in streams:
                await stream.aclose()

    asyncio.run(main())


def test_a_client_that_goes_away_frees_its_slot(tiny_model: Loader) -> None:
    async def main() -> None:
        async with running(tiny_model("llama"), slots=1) as engine:
            async with aclosing(engine.stream(greedy_job("left", [1, 2, 3], 240))) as events:
                async for _ in events:
                    break
            events_after = await asyncio.wait_for(answer(engine, greedy_job("next", [4, 5], 3)), 5)
            assert events_after[-1].finish == "length"
            await idle(engine)

    asyncio.run(main())


def test_a_job_abandoned_before_it_was_read_frees_its_place(tiny_model: Loader) -> None:
    async def main() -> None:
        async with running(tiny_model("llama"), slots=1) as engine:
            for number in range(6):
                stream = engine.stream(greedy_job(str(number), [1, 2, 3], 240))
                await stream.aclose()
            await idle(engine)

    asyncio.run(main())


def break_model(loaded: LoadedModel) -> Any:
    def explode(*_: Any) -> None:
        raise RuntimeError("device lost")

    return loaded.blocks[0].register_forward_pre_hook(explode)


def test_a_model_that_fails_for_everyone_ends_as_a_dead_engine(tmp_path: Any) -> None:
    loaded = load_tiny("llama", tmp_path)

    async def main() -> None:
        async with running(loaded) as engine:
            break_model(loaded)
            failures: list[type[Exception]] = []
            for number in range(MOST_FAILURES):
                try:
                    await asyncio.wait_for(answer(engine, greedy_job(str(number), [1, 2], 3)), 5)
                except (GenerationFailed, EngineUnavailable) as error:
                    failures.append(type(error))
            assert failures == [GenerationFailed] * (MOST_FAILURES - 1) + [EngineUnavailable]
            assert engine.health().state == "dead"
            assert "device lost" in (engine.health().reason or "")
            with pytest.raises(EngineUnavailable):
                engine.stream(greedy_job("late", [1], 1))

    asyncio.run(main())


def test_closing_ends_running_and_waiting_jobs(tiny_model: Loader) -> None:
    async def main() -> None:
        async with running(tiny_model("llama"), slots=1) as engine:
            jobs = [asyncio.create_task(answer(engine, greedy_job(str(i), [1, 2], 250))) for i in range(3)]
            await asyncio.sleep(0.05)
            await engine.close()
            for result in await asyncio.gather(*jobs, return_exceptions=True):
                assert isinstance(result, EngineUnavailable)

    asyncio.run(main())


def test_the_hooks_are_gone_after_closing(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    # Transformers leaves hooks of its own on a model that once returned its hidden states.
    before = [len(block._forward_hooks) for block in loaded.blocks]

    async def main() -> None:
        async with running(loaded) as engine:
            await answer(engine, greedy_job("one", [1, 2], 2))
            hooked = [len(block._forward_hooks) for block in loaded.blocks]
            assert all(now > then for now, then in zip(hooked, before, strict=True))

    asyncio.run(main())
    assert [len(block._forward_hooks) for block in loaded.blocks] == before


def test_an_answer_ends_at_the_end_token_unless_told_otherwise(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    end = loaded.tokenizer.eos_token_id

    async def ask(ignore: bool) -> list[TokenEvent]:
        sampling = SamplingParams(max_tokens=5, temperature=0.0, logit_bias={end: 100.0}, ignore_eos=ignore)
        async with running(loaded) as engine:
            return await answer(engine, GenerationJob("end", (1, 2, 3), sampling))

    stopped, ignored = asyncio.run(ask(False)), asyncio.run(ask(True))
    assert [(event.text, event.finish, event.completion_tokens) for event in stopped] == [("", "stop", 1)]
    assert (len(ignored), ignored[-1].finish) == (5, "length")


def test_a_stop_string_cuts_the_text_and_ends_the_answer(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    job = greedy_job("whole", [5, 6, 7], 24)
    whole = naive_text(loaded, job)
    stop = whole[5:8]
    sampling = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, stop=(stop,))

    async def main() -> list[TokenEvent]:
        async with running(loaded) as engine:
            return await answer(engine, GenerationJob("cut", job.prompt, sampling))

    events = asyncio.run(main())
    assert "".join(event.text for event in events) == whole[: whole.index(stop)]
    assert events[-1].finish == "stop"


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_on_a_gpu_a_mixed_batch_is_what_each_request_gets_alone(tmp_path: Any, family: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert_concurrent_jobs_answer_as_alone(load_tiny(family, tmp_path, device="cuda"))
