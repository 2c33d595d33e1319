"""What /openapi.json says of answers: they have that shape, and no more than that."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from server.chat_shapes import ChatChunk, ChatCompletion
from server.routes.documented import Refusal
from server.routes.models import Model, Models
from server.routes.operations import Health
from server.routes.profiles import Detailed, Profiles
from tests.server.running import Running
from tests.server.test_tools import CALL, WEATHER, Start, says


def check(shape: Any, answer: Any) -> None:
    """Hold the answer against the shape; what the shape does not know would be lost on the way."""
    adapter = TypeAdapter(shape)
    assert adapter.dump_python(adapter.validate_python(answer, strict=True)) == answer


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "logprobs": True, "top_logprobs": 2},
        {"max_tokens": 2},
        {"tools": [WEATHER], "logprobs": True},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"steering": "cheerful"},
        {"steering": {"profile": "cheerful", "strength": [0, 1]}},
    ],
)
def test_chat_answers_have_the_shape_that_is_documented(start: Start, fields: dict[str, Any]) -> None:
    running = start(says(f"words {CALL}"))
    check(ChatCompletion, running.answer(**fields))
    for chunk in running.chunks(**fields, stream_options={"include_usage": True}):
        check(ChatChunk, chunk)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/models", Models),
        ("/v1/models/scripted:cheerful", Model),
        ("/v1/steering/profiles", Profiles),
        ("/v1/steering/profiles/cheerful", Detailed),
        ("/health", Health),
        ("/ready", Health),
        ("/v1/models/gpt-4", Refusal),
        ("/v1/nothing", Refusal),
    ],
)
def test_other_answers_have_the_shape_that_is_documented(server: Running, path: str, shape: Any) -> None:
    check(shape, server.client.get(path).json())


def test_every_route_documents_its_answers_and_its_errors(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    for path, method in ((path, method) for path, methods in paths.items() for method in methods):
        told = paths[path][method]["responses"]
        assert "200" in told or "404" in told, path
        for status in ("4XX", "5XX"):
            assert "error" in told[status]["content"]["application/json"]["schema"]["properties"]


def test_a_method_that_is_not_there_is_told_all_that_are(server: Running) -> None:
    response = server.client.put("/v1/responses/resp_1")
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "DELETE"}
    for path in ("input_tokens", "compact"):
        assert server.client.put(f"/v1/responses/{path}").headers["allow"] == "POST"


def test_a_field_that_may_only_be_absent_is_documented_so(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    body = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["audio"]["enum"] == [None]
    assert body["properties"]["modalities"]["enum"] == [None, ["text"]]


@pytest.mark.parametrize(
    ("title", "path"),
    [
        ("Chat completions", "/v1/chat/completions"),
        ("Completions", "/v1/completions"),
        ("Responses", "/v1/responses"),
    ],
)
def test_the_page_on_the_api_has_every_parameter(server: Running, title: str, path: str) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text("utf-8")
    table = page.partition(f"\n## {title}\n")[2].partition("\n#")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    operation = server.client.get("/openapi.json").json()["paths"][path]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(body["properties"])
