"""The engine on stock vLLM answers as the reference does: `generate`, one request at a time, a naive hook."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from server.engine.protocol import GenerationJob
from steering.errors import EngineOverloaded
from steering.types import SteeringTerm
from tests.server.engine.on_vllm import OnVllm, answer, on_vllm
from tests.server.engine.reference import greedy_job, naive_text, naive_tokens, random_vectors, term
from tests.server.engine.test_seeing import mixed_jobs as seeing_jobs
from tests.tiny_vlms import save_tiny_vlm

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "by_table": {"by_table": True},
    "compiled": {"eager": False},
    "compiled_by_table": {"eager": False, "by_table": True},
}


@pytest.fixture(scope="module", params=WAYS)
def each_way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnVllm]:
    with on_vllm(tmp_path_factory.mktemp("model"), **WAYS[request.param]) as served:
        yield served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnVllm]:
    """An engine that computes a prompt in pieces of at most 24 tokens, and holds eight profiles."""
    with on_vllm(tmp_path_factory.mktemp("model"), prefill_chunk=24, max_profiles=8) as served:
        yield served


def mixed_jobs(served: OnVllm, count: int, seed: int = 0) -> list[GenerationJob]:
    """Return requests under several profiles, layers, strengths, compositions and positions, or none."""
    draw = random.Random(seed)
    vectors = [
        random_vectors(name, served.loaded, layers)
        for name, layers in [("calm", [0, 2]), ("loud", [1, 2, 3]), ("late", [3])]
    ]
    jobs = []
    for number in range(count):
        chosen = draw.sample(vectors, draw.choice([0, 1, 1, 1, 2, 3]))
        terms = [
            term(
                each,
                round(draw.uniform(-1, 1), 2),
                layers=draw.choice([each.layers, each.layers[-1:]]),
                positions=draw.choice(["all", "prompt", "generated"]),
            )
            for each in chosen
        ]
        prompt = [draw.randrange(250) for _ in range(draw.randrange(2, 60))]
        jobs.append(greedy_job(f"{seed}/{number}", prompt, draw.randrange(4, 16), *terms))
    return jobs


def test_sixty_four_mixed_requests_answer_as_the_reference_does(each_way: OnVllm) -> None:
    jobs = mixed_jobs(each_way, 64)
    expected = [naive_text(each_way.loaded, job) for job in jobs]
    assert each_way.texts(jobs) == expected
    assert each_way.texts(mixed_jobs(each_way, 64)) == expected, "with their prompts in the cache"


def test_a_thousand_strengths_compile_nothing_and_keep_no_room(each_way: OnVllm) -> None:
    vectors = random_vectors("calm", each_way.loaded, [1, 2])
    compiled = [worker["compiled"] for worker in each_way.run(each_way.engine.describe())]
    for begin in range(0, 1000, 50):
        jobs = [
            greedy_job(f"s{number}", [number % 250, 7, 9], 2, term(vectors, number / 500))
            for number in range(begin, begin + 50)
        ]
        assert all(events[-1].finish == "length" for events in each_way.events(jobs))
    assert [worker["compiled"] for worker in each_way.run(each_way.engine.describe())] == compiled
    health = each_way.engine.health()
    assert (health.running, health.waiting) == (0, 0)


def test_prompts_in_pieces_answer_as_the_reference_does(served: OnVllm) -> None:
    jobs = mixed_jobs(served, 24, seed=1)
    assert served.texts(jobs) == [naive_text(served.loaded, job) for job in jobs]


def ways_to_steer(served: OnVllm) -> dict[str, tuple[SteeringTerm, ...]]:
    first, second = (random_vectors(name, served.loaded, [1, 2]) for name in ("first", "second"))
    return {
        "unsteered": (),
        "by A": (term(first, 0.8),),
        "by B": (term(second, 0.8),),
        "by less of A": (term(first, 0.4),),
        "generated tokens only": (term(first, 0.8, positions="generated"),),
        "the prompt only": (term(first, 0.8, positions="prompt"),),
    }


def test_no_order_of_steerings_contaminates_a_shared_prompt(served: OnVllm) -> None:
    steerings = ways_to_steer(served)
    draw = random.Random(5)
    orders = list(itertools.permutations(["unsteered", "by A", "by B", "generated tokens only"]))
    cold: dict[str, str] = {}
    for turn, order in enumerate([tuple(steerings), *draw.sample(orders, 8)]):
        prompt = [draw.randrange(250) for _ in range(200)]
        for name in order:
            job = greedy_job(f"{turn}/{name}", prompt, 8, *steerings[name])
            cold[name] = naive_text(served.loaded, job)
            assert served.texts([job]) == [cold[name]], f"{name} in {order}"
        assert len({cold[name] for name in order}) > 1, "the steerings must be told apart by their answers"


def cached(served: OnVllm, job: GenerationJob) -> int:
    (events,) = served.events([job])
    assert "".join(event.text for event in events) == naive_text(served.loaded, job)
    return max(event.cached_tokens for event in events)


def test_the_cache_serves_one_steering_and_shares_the_prompts_that_none_moved(served: OnVllm) -> None:
    steerings = ways_to_steer(served)
    prompt = [11, *range(3, 202)]

    def hits(name: str) -> int:
        return cached(served, greedy_job(f"{name}/{next(number)}", prompt, 4, *steerings[name]))

    number = itertools.count()
    assert [hits("unsteered"), hits("by A"), hits("by B"), hits("by less of A")] == [0, 0, 0, 0]
    assert hits("generated tokens only") == 192, "an unsteered prompt's cache is shared"
    assert hits("the prompt only") == 192, "the same steering of the prompt"
    assert [hits(name) for name in steerings] == [192] * len(steerings)


@pytest.mark.parametrize("first", ["unsteered", "by A", "generated tokens only", "the prompt only"])
def test_an_answer_in_the_cache_is_only_a_prompt_to_those_who_would_compute_it_so(
    served: OnVllm, first: str
) -> None:
    steerings = ways_to_steer(served)
    start = [17, *range(5, 64), len(first)]
    job = greedy_job(f"turn 1 {first}", start, 80, *steerings[first])
    served.events([job])
    said = naive_tokens(served.loaded, job)
    for then in steerings:
        longer = greedy_job(f"turn 2 {first} {then}", [*start, *said, 4, 5], 6, *steerings[then])
        cached(served, longer)  # answers as the reference does, whatever was found


def test_profiles_beyond_the_room_take_turns_and_none_is_lost(served: OnVllm) -> None:
    vectors = [random_vectors(chr(97 + number), served.loaded, [1, 3]) for number in range(24)]
    jobs = [
        greedy_job(f"turns {number}", [number, 3, 5, 8], 12, term(vectors[number % 24], 0.7))
        for number in range(60)
    ]
    assert served.texts(jobs) == [naive_text(served.loaded, job) for job in jobs]


def test_steered_tokens_are_counted_by_term(served: OnVllm) -> None:
    vectors = random_vectors("calm", served.loaded, [1, 2])
    terms = [term(vectors, 1.0, positions=where) for where in ("all", "prompt", "generated")]
    (events,) = served.events([greedy_job("counted", range(10), 5, *terms, term(vectors, 0.0))])
    assert events[-1].steered_tokens == (14, 10, 4, 0)


def test_a_client_that_goes_away_frees_its_place(served: OnVllm) -> None:
    vectors = random_vectors("calm", served.loaded, [1, 2])

    async def main() -> None:
        for number in range(12):
            job = greedy_job(f"left {number}", [1, 2, number], 200, term(vectors, 0.5))
            async with aclosing(served.engine.stream(job)) as events:
                if number % 2:
                    await anext(events)
        last = await asyncio.wait_for(answer(served.engine, greedy_job("next", [4, 5], 3)), 20)
        assert last[-1].finish == "length"
        await asyncio.sleep(0.1)
        health = served.engine.health()
        assert (health.running, health.waiting) == (0, 0)

    served.run(main(), 60)


def test_a_full_queue_is_refused_with_a_time_to_come_back(served: OnVllm) -> None:
    async def main() -> None:
        slots_and_queue = 16 + 64
        jobs = [greedy_job(f"many {number}", [1, 2, 3], 100) for number in range(slots_and_queue + 1)]
        streams = [served.engine.stream(job) for job in jobs[:-1]]
        with pytest.raises(EngineOverloaded) as refusal:
            served.engine.stream(jobs[-1])
        assert refusal.value.retry_after > 0
        for stream in streams:
            await stream.aclose()

    served.run(main())


def test_families_that_sum_early_late_and_in_windows_are_steered(tmp_path: Path) -> None:
    for family in ("gemma3", "qwen3", "gpt2"):
        with on_vllm(tmp_path / family, family) as served:
            jobs = mixed_jobs(served, 12, seed=3)
            assert served.texts(jobs) == [naive_text(served.loaded, job) for job in jobs], family


def test_images_are_seen_and_steered_by_kind_of_token(tmp_path: Path) -> None:
    with on_vllm(tmp_path, "idefics3", save=save_tiny_vlm) as served:
        jobs = seeing_jobs(served.loaded)
        assert served.texts(jobs) == [naive_text(served.loaded, job) for job in jobs]


@pytest.mark.parametrize(
    ("way", "eager"),
    [("tensor_parallel_size", True), ("pipeline_parallel_size", False), ("data_parallel_size", True)],
)
def test_two_ranks_answer_as_one(tmp_path: Path, monkeypatch: Any, way: str, eager: bool) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    with on_vllm(tmp_path, eager=eager, **{way: 2}) as served:
        # vLLM passes a call on to every data-parallel rank, and returns the first one's answers.
        workers = 1 if way.startswith("data") else 2
        assert len(served.run(served.engine.describe())) == workers
        jobs = mixed_jobs(served, 24, seed=4)
        assert served.texts(jobs) == [naive_text(served.loaded, job) for job in jobs]
