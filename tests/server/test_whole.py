"""The whole server, nothing scripted: HTTP, a store on disk, the transformers engine, a tiny model."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import torch

from server.engine.batcher import BatchLimits
from server.engine.protocol import GenerationJob, SamplingParams
from server.engine.transformers_engine import TransformersEngine
from server.prompts import prompt_of
from steering.loading import LoadedModel
from steering.types import SteeringPlan, SteeringTerm
from tests.server.engine.reference import naive_text
from tests.server.profiles import OTHER, publish
from tests.server.running import Running, error_of, running, until
from vector_store.local import LocalStore

TOKENS = 16
STEERINGS: list[Any] = [
    None,
    {"profile": "calm", "strength": 1.5},
    "calm*-0.5+bold*0.7",
    [{"profile": "bold", "strength": 2.0, "layers": [1], "positions": "generated"}],
    {"profile": "calm", "strength": 0.0},
    {"profile": "bold", "positions": "prompt"},
]


class Whole:
    """A running server and what its answers must be."""

    def __init__(self, loaded: LoadedModel, store: LocalStore, server: Running) -> None:
        self.loaded = loaded
        self.store = store
        self.server = server
        self.model = loaded.identity.id

    def body(self, question: str, steering: Any, **fields: Any) -> dict[str, Any]:
        asked = {"model": self.model, "messages": [{"role": "user", "content": question}]}
        steered = {} if steering is None else {"steering": steering}
        return {**asked, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, **steered, **fields}

    def expected(self, question: str, *terms: SteeringTerm) -> str:
        prompt = prompt_of([{"role": "user", "content": question}], self.loaded.tokenizer)
        sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
        return naive_text(self.loaded, GenerationJob("job", prompt, sampling, SteeringPlan(terms)))

    def terms(self, which: int) -> list[SteeringTerm]:
        calm, bold = (self.store.get(name).vectors for name in ("calm", "bold"))
        return [
            [],
            [SteeringTerm(calm, 1.5, calm.layers, "all")],
            [SteeringTerm(calm, -0.5, calm.layers, "all"), SteeringTerm(bold, 0.7, bold.layers, "all")],
            [SteeringTerm(bold, 2.0, (1,), "generated")],
            [],
            [SteeringTerm(bold, 1.0, bold.layers, "prompt")],
        ][which]


def publish_random(
    store: LocalStore, name: str, layers: tuple[int, ...], loaded: LoadedModel, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    publish(store, name, layers, model=loaded.identity)
    newest = store.get(name)
    deltas = {layer: torch.randn(loaded.identity.hidden_size, generator=generator) * 3 for layer in layers}
    store.publish(newest.manifest, deltas, {})


@pytest.fixture(scope="module")
def whole(
    tiny_model: Callable[[str], LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Whole]:
    loaded, store = tiny_model("qwen3"), LocalStore(tmp_path_factory.mktemp("store"))
    publish_random(store, "calm", (0, 2), loaded, 1)
    publish_random(store, "bold", (1, 3), loaded, 2)
    publish(store, "foreign", (0,), model=OTHER)
    engine = TransformersEngine(loaded, BatchLimits(4, 32, 4 * 256, 256), max_waiting=12)
    with running(store, engine) as server:
        yield Whole(loaded, store, server)


async def ask_all(url: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        responses = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))
    return [response.raise_for_status().json() for response in responses]


def test_concurrent_requests_steered_apart_get_the_references_answers(whole: Whole) -> None:
    asked = [(question, which) for question in ("hello", "tell me more") for which in range(len(STEERINGS))]
    answers = asyncio.run(
        ask_all(whole.server.url, [whole.body(question, STEERINGS[which]) for question, which in asked])
    )
    for (question, which), answer in zip(asked, answers, strict=True):
        assert answer["choices"][0]["message"]["content"] == whole.expected(question, *whole.terms(which))


def test_the_official_client_reads_a_steered_stream_and_its_proof(whole: Whole) -> None:
    profile = whole.store.get("calm")
    with openai.OpenAI(base_url=f"{whole.server.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model=whole.model,
            messages=[{"role": "user", "content": "hello"}],
            temperature=0,
            max_tokens=TOKENS,
            stream=True,
            extra_body={"ignore_eos": True, "steering": {"profile": "calm", "strength": 1.5}},
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.expected("hello", *whole.terms(1))
    assert chunks[-1].model_extra is not None
    (proof,) = chunks[-1].model_extra["steering"]
    assert proof["digest"] == profile.manifest.digest
    assert proof["version"] == profile.manifest.version
    prompt = prompt_of([{"role": "user", "content": "hello"}], whole.loaded.tokenizer)
    assert proof["steered_tokens"] == len(prompt) + TOKENS - 1


def test_a_new_version_is_served_without_a_restart_and_the_old_one_by_its_number(whole: Whole) -> None:
    publish_random(whole.store, "fresh", (1,), whole.loaded, 3)

    def answer(name: str) -> dict[str, Any]:
        return asyncio.run(ask_all(whole.server.url, [whole.body("hello", name)]))[0]

    before = answer("fresh*2")
    publish_random(whole.store, "fresh", (1,), whole.loaded, 4)
    after, pinned = answer("fresh*2"), answer(f"fresh@{before['steering'][0]['version']}*2")
    assert after["steering"][0]["version"] > before["steering"][0]["version"]
    assert after["choices"] != before["choices"]
    assert pinned["choices"] == before["choices"]


def test_a_corrupt_profile_is_refused_and_its_neighbours_serve_on(whole: Whole) -> None:
    publish_random(whole.store, "broken", (1,), whole.loaded, 5)
    path = whole.store.get("broken").path / "vectors.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    response = httpx.post(f"{whole.server.url}/v1/chat/completions", json=whole.body("hello", "broken"))
    assert "broken" in error_of(response)["message"]
    assert response.status_code >= 400
    answer = asyncio.run(ask_all(whole.server.url, [whole.body("hello", STEERINGS[1])]))[0]
    assert answer["choices"][0]["message"]["content"] == whole.expected("hello", *whole.terms(1))


def test_a_profile_of_another_model_is_listed_with_the_reason_and_refused(whole: Whole) -> None:
    listed = httpx.get(f"{whole.server.url}/v1/steering/profiles").json()["data"]
    (foreign,) = [profile for profile in listed if profile["name"] == "foreign"]
    assert not foreign["compatible"]
    assert "other-model" in foreign["reason"]
    response = httpx.post(f"{whole.server.url}/v1/chat/completions", json=whole.body("hello", "foreign"))
    assert (response.status_code, error_of(response)["code"]) == (400, "profile_incompatible")


def test_a_full_queue_answers_503_with_retry_after(whole: Whole) -> None:
    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=whole.server.url, timeout=60) as client:
            body = whole.body("hello", None, max_tokens=120)
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(24)))

    responses = asyncio.run(flood())
    refused = [response for response in responses if response.status_code == 503]
    assert refused
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)
    assert (
        len({response.text.split('"content"')[1] for response in responses if response.status_code == 200})
        == 1
    )


def test_clients_that_hang_up_leave_nothing_behind(whole: Whole) -> None:
    async def hang_up() -> None:
        async with httpx.AsyncClient(base_url=whole.server.url, timeout=60) as client:
            body = whole.body("hello", STEERINGS[1], max_tokens=200, stream=True)
            for _ in range(6):
                async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    async for _ in response.aiter_lines():
                        break

    asyncio.run(hang_up())

    def nothing_left() -> bool:
        health = httpx.get(f"{whole.server.url}/health").json()
        return health["running"] == 0 and health["waiting"] == 0

    until(nothing_left)


@pytest.mark.parametrize(
    ("steering", "param"),
    [
        ({"profile": "clam"}, "steering.profile"),
        ({"profile": "calm", "strength": "1"}, "steering.strength"),
        ({"profile": "calm", "strength": 1e300}, "steering.strength"),
        ({"profile": "calm", "strenght": 1}, "steering.strenght"),
        ({"profile": "calm", "layers": [1]}, "steering.layers"),
        ("calm*", "steering"),
        (7, "steering"),
    ],
)
def test_bad_steering_is_refused_by_name_and_never_runs_unsteered(
    whole: Whole, steering: Any, param: str
) -> None:
    response = httpx.post(f"{whole.server.url}/v1/chat/completions", json=whole.body("hello", steering))
    assert 400 <= response.status_code < 500
    assert error_of(response)["param"].startswith(param)


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(whole: Whole) -> None:
    response = httpx.post(f"{whole.server.url}/v1/chat/completions", json=whole.body("x" * 500, None))
    error = error_of(response)
    assert (error["status"], error["code"]) == (400, "context_length_exceeded")
    assert "256" in error["message"]
