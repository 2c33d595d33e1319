"""Usage tells what of a prompt an earlier request's cache held, where the engine has one."""

from typing import Any

import pytest

from server.engine.scripted import ScriptedEngine
from tests.server.running import Running


@pytest.fixture
def caching(start: Any) -> Running:
    server: Running = start(ScriptedEngine(cached_tokens=3))
    return server


def test_chat_tells_it_once_for_all_choices(caching: Running) -> None:
    usage = caching.answer(n=2)["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    last = caching.chunks(stream_options={"include_usage": True})[-1]
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


def test_responses_tell_it_where_openai_does(caching: Running) -> None:
    response = caching.client.post("/v1/responses", json={"model": "scripted", "input": "hello"}).json()
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 3


def test_an_engine_without_a_cache_says_nothing_of_it(server: Running) -> None:
    assert "prompt_tokens_details" not in server.answer()["usage"]
