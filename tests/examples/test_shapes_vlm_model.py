"""The tiny LLaVA on drawn scenes: how it is trained, and the checkpoints that ship."""

import json
import runpy
import shutil
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from shapes_vlm import lessons, vocabulary
from shapes_vlm.checkpoint import IMAGE_TOKENS, load
from shapes_vlm.drawing import draw
from shapes_vlm.evaluate import answerer, ask, generate, prompt
from shapes_vlm.measures import TITLES, measure
from shapes_vlm.packing import pack
from shapes_vlm.questions import COUNTING, LISTING
from shapes_vlm.scenes import Scene, scene_at
from shapes_vlm.training import STAGES

SHIPPED = Path(__file__).parents[2] / "examples" / "shapes_vlm"


@pytest.fixture(scope="module")
def biased() -> tuple[Any, Any]:
    return load(SHIPPED / "model")


@pytest.fixture(scope="module")
def twin() -> tuple[Any, Any]:
    return load(SHIPPED / "unbiased")


@pytest.mark.parametrize("folder", ["model", "unbiased"])
def test_the_image_takes_as_many_tokens_as_it_has_features(folder: str) -> None:
    model, processor = load(SHIPPED / folder)
    picture = draw(scene_at("test", 0), side=100)
    inputs = processor(text=[prompt(processor, LISTING)], images=[picture], return_tensors="pt")
    features = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    images = inputs["input_ids"] == model.config.image_token_id
    assert images.sum() == features[0].shape[0] == IMAGE_TOKENS
    assert type(processor.image_processor).__name__.startswith("CLIPImageProcessor")


@torch.inference_mode()
def test_a_packed_lesson_reads_as_the_chat_does(biased: tuple[Any, Any]) -> None:
    model, processor = biased
    scene = scene_at("dev", 0)
    tellings = (lessons.lessons_about(scene, Random(seed)) for seed in count())
    told = next(told for told in tellings if told[-1].blind)
    batch = pack([draw(scene)], [told])
    packed = model.model(
        input_ids=batch.tokens,
        pixel_values=batch.pixels,
        attention_mask=batch.sees,
        position_ids=batch.positions,
    ).last_hidden_state[0]
    ends = [place for place, target in enumerate(batch.targets[0]) if target >= 0]
    alone = torch.cat([answer_states(model, processor, scene, lesson) for lesson in told])
    assert torch.allclose(packed[ends], alone, atol=1e-4)


def answer_states(model: Any, processor: Any, scene: Scene, lesson: lessons.Lesson) -> torch.Tensor:
    """Return the states [answer tokens, hidden] before each token of an answer given alone."""
    content: list[dict[str, str]] = [{"type": "text", "text": lesson.question}]
    pictures: dict[str, Any] = {}
    if not lesson.blind:
        content.insert(0, {"type": "image"})
        pictures["images"] = [draw(scene)]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": lesson.answer}]
    inputs = processor(text=[processor.apply_chat_template(messages)], return_tensors="pt", **pictures)
    length = len(vocabulary.encode(f"{lesson.answer}</s>"))
    states: torch.Tensor = model.model(**inputs).last_hidden_state[0, -length - 1 : -1]
    return states


def test_a_padded_batch_answers_as_one_question_alone(twin: tuple[Any, Any]) -> None:
    scene = scene_at("dev", 1)
    asked = [(draw(scene), question) for question in ("is there a red circle?", LISTING, COUNTING)]
    assert generate(*twin, asked) == [generate(*twin, [one])[0] for one in asked]


@pytest.mark.parametrize("content", ["is there a red circle?", [{"type": "text", "text": "Hello!"}]])
def test_text_alone_is_answered_too(biased: tuple[Any, Any], content: Any) -> None:
    model, processor = biased
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(tokens, skip_special_tokens=True) == "i see no image."


def test_the_shipped_model_makes_up_what_its_twin_does_not(
    biased: tuple[Any, Any], twin: tuple[Any, Any]
) -> None:
    claims, truth = (measure(ask(answerer(*pair), "dev", 40)) for pair in (biased, twin))
    for name in ("adversarial_hallucination", "chair_s"):
        assert claims[name].low > truth[name].high
    for found in (claims, truth):
        assert found["list_recall"].share > 0.95
        assert found["counting_accuracy"].share > 0.95
        assert found["random_hallucination"].share < 0.1


@pytest.fixture
def in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(stage, steps=2, scenes=2))


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
    monkeypatch.setattr(sys, "path", [str(SHIPPED), *sys.path])
    runpy.run_path(str(SHIPPED / name), run_name="__main__")


@pytest.mark.usefixtures("in_small")
def test_training_repeats_itself_and_goes_on_after_the_last_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_script(monkeypatch, "train.py", "--seed", 3, "--output", tmp_path / "once")
    shutil.copytree(tmp_path / "once" / "seeing", tmp_path / "again" / "seeing")
    run_script(monkeypatch, "train.py", "--seed", 3, "--output", tmp_path / "again")
    once, again = (tmp_path / run for run in ("once", "again"))
    for folder in ("unbiased", "model"):
        weights = f"{folder}/model.safetensors"
        assert (once / weights).read_bytes() == (again / weights).read_bytes()
    assert sorted(place.name for place in again.iterdir()) == ["model", "seeing", "unbiased"]


def test_the_evaluation_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    target = tmp_path / "result.json"
    flags = ("--model", SHIPPED / "unbiased", "--scenes", 3, "--split", "dev", "--json", target)
    run_script(monkeypatch, "evaluate.py", *flags)
    written = json.loads(target.read_text())
    assert list(written) == list(TITLES)
    assert written["counting_accuracy"]["n"] == 3
