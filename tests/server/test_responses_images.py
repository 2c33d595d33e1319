"""Images in the input of responses go the way of chat's."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from server.engine.scripted import ScriptedEngine
from steering.picturing import pictured_of
from tests.server.asking_responses import CALLED, PARTS, RESULT, TEXT_PART, USER, answer, refusal
from tests.server.profiles import small_store
from tests.server.running import Running, running
from tests.server.test_images import as_bytes, noise, url_of
from tests.tiny_vlms import load_tiny_vlm


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose engine's card is that of a model that takes images."""
    loaded = load_tiny_vlm("llava", tmp_path_factory.mktemp("llava"))
    engine = ScriptedEngine(lambda job: "seen")
    engine.card = replace(
        engine.card,
        tokenizer=loaded.tokenizer,
        vocabulary_size=loaded.vocabulary_size,
        pictured=pictured_of(loaded),
    )
    with running(small_store(), engine, max_images=2) as started:
        yield started


def image(url: str) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url, "detail": "auto"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


URL = url_of(as_bytes(noise((16, 16), 1)))


def test_images_go_the_way_of_chats(seeing: Running) -> None:
    answer(seeing, input=[user(TEXT_PART, image(URL))])
    chat = {
        "role": "user",
        "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": URL}}],
    }
    seeing.answer(messages=[chat])
    mine, chats = seeing.engine.jobs[-2:]
    assert mine.prompt == chats.prompt
    assert mine.images is not None
    assert mine.images.spans == chats.images.spans


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([user(TEXT_PART, image("data:image/png;base64,AAAA"))], f"{PARTS}[1].image_url"),
        ([USER, user(image("https://example.com/a.png"))], "input[1].content[0].image_url"),
        ([user(image(URL)), user(image(URL), image(URL))], "input[1].content[1].image_url"),
        ([USER, CALLED, {**RESULT, "output": [image("no")]}], "input[2].output[0].image_url"),
        ([USER, user({**TEXT_PART, "text": "see <image>"})], "input[1].content"),
    ],
)
def test_an_image_that_cannot_be_seen_is_named(seeing: Running, items: Any, param: str) -> None:
    for instructions in (None, "Look."):
        error = refusal(seeing, input=items, instructions=instructions)
        assert (error["status"], error["param"]) == (400, param)


def test_a_model_of_words_takes_no_images(server: Running) -> None:
    error = refusal(server, input=[user(TEXT_PART, image(URL))])
    assert (error["code"], error["param"]) == ("unsupported_parameter", f"{PARTS}[1].image_url")
