"""Bodies made to be expensive are refused at once, and refusals say nothing of the machine."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from steering.errors import quotable
from tests.server.running import CHAT, HELLO, Running, error_of

DEEP = "[" * 100_000 + "]" * 100_000
USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        json.dumps({**HELLO, "logit_bias": "@"}).replace('"@"', DEEP),
        json.dumps({**HELLO, "tools": "@"}).replace('"@"', DEEP),
        json.dumps({**HELLO, "steering": "@"}).replace('"@"', DEEP),
        json.dumps({**HELLO, "messages": "@"}).replace('"@"', DEEP),
        json.dumps({**HELLO, "unknown": "@"}).replace('"@"', '{"a":' * 150 + "1" + "}" * 150),
        json.dumps({**HELLO, "seed": "@"}).replace('"@"', "9" * 3_000_000),
        json.dumps({**HELLO, "temperature": "@"}).replace('"@"', f"0.{'9' * 3_000_000}e999999999"),
        json.dumps({**HELLO, "messages": [{}] * 200_000}),
        json.dumps({**HELLO, "messages": [USER] * 50_000}),
        json.dumps({**HELLO, "stop": ["x"] * 500_000}),
        json.dumps({**HELLO, "metadata": {str(number): "x" for number in range(200_000)}}),
    ],
    ids=range(13),
)
def test_a_body_made_to_be_slow_is_a_fast_400(server: Running, body: str) -> None:
    begin = time.perf_counter()
    error = error_of(server.client.post(CHAT, content=body, headers={"content-type": "application/json"}))
    assert error["status"] == 400
    assert time.perf_counter() - begin < 2
    assert len(error["message"]) < 2500


def test_as_many_messages_as_the_limit_are_read(start: Callable[..., Running]) -> None:
    from server.engine.scripted import ScriptedEngine

    server = start(ScriptedEngine(context_length=200_000))
    assert server.chat(messages=[USER] * 2048, max_tokens=1).status_code == 200


def test_what_goes_along_is_taken_up_to_openais_limits(server: Running) -> None:
    metadata = {f"{number:064}": "x" * 512 for number in range(16)}
    identifiers = {"safety_identifier": "x" * 64, "prompt_cache_key": "x" * 64}
    assert server.chat(metadata=metadata, user="x" * 512, **identifiers).status_code == 200


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("cannot read /home/ann/models/x.py now", "cannot read ... now"),
        ("<Foo object at 0x7f3a2b1c> is no list", "<Foo object at ...> is no list"),
        ("in C:\\Users\\ann\\x.txt", "in ..."),
        ("two\nlines,\tone", "two lines, one"),
        ("and/or, 1/2, a/b/c", "and/or, 1/2, a/b/c"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("x" * 300, "x" * 197 + "..."),
    ],
)
def test_what_others_say_is_told_without_places(said: str, told: str) -> None:
    assert quotable(said) == told


def test_refusals_name_no_place_on_the_machine(server: Running) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    wrong: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": [image]}]},
        {"messages": [{"role": "pirate"}]},
        {"steering": "nowhere"},
        {"steering": {"profile": "../../etc/passwd"}},
        {"steering": {"profile": "cheerful", "layers": [99]}},
        {"model": "/etc/passwd"},
        {"temperature": "hot", "n": [], "stop": {}},
    ]
    for fields in wrong:
        text = server.chat(**fields).text.replace("../../etc/passwd", "").replace("/etc/passwd", "")
        assert not re.search(r"0x[0-9a-f]{6}|Traceback|File \"|\.py|/home|/usr|/tmp|site-packages", text)
