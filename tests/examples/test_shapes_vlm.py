"""The tiny LLaVA on drawn scenes: its pictures, its questions, its measures and what ships of it."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shapes_vlm import vocabulary
from shapes_vlm.checkpoint import IMAGE_TOKENS, load
from shapes_vlm.drawing import PAINTS, PAPER, SIDE, draw
from shapes_vlm.evaluate import answerer, ask, generate, prompt
from shapes_vlm.lessons import lessons_about
from shapes_vlm.measures import TITLES, Asked, bootstrap, kinds_named, measure, wilson
from shapes_vlm.packing import pack
from shapes_vlm.questions import COUNTING, LISTING, Question, existence, questions_about
from shapes_vlm.scenes import CELLS_A_SIDE, KINDS, Kind, Placed, Scene, partner, scene_at
from shapes_vlm.training import patch_labels

SHIPPED = Path(__file__).parents[2] / "examples" / "shapes_vlm"
RED_CIRCLE, BLUE_STAR = Kind("red", "circle"), Kind("blue", "star")
SPLITS = ("train", "build", "dev", "test")


@pytest.fixture(scope="module")
def biased() -> tuple[Any, Any]:
    return load(SHIPPED / "model")


@pytest.fixture(scope="module")
def twin() -> tuple[Any, Any]:
    return load(SHIPPED / "unbiased")


def scene_of(*kinds: Kind) -> Scene:
    objects = (Placed(kind, cell, 0.0, 0.0, 0.38, 1.0) for cell, kind in enumerate(kinds))
    return Scene(tuple(objects), grain=0)


def test_a_scene_and_its_picture_are_the_same_each_time() -> None:
    scene = scene_at("dev", 3, seed=5)
    assert scene == scene_at("dev", 3, seed=5)
    assert draw(scene).tobytes() == draw(scene_at("dev", 3, seed=5)).tobytes()
    assert scene not in (scene_at("dev", 4, seed=5), scene_at("dev", 3, seed=6))


def test_no_split_holds_a_scene_of_another() -> None:
    scenes = [scene_at(split, index, seed) for split in SPLITS for seed in (0, 1) for index in range(100)]
    assert len(set(scenes)) == len(scenes)


@pytest.mark.parametrize("side", [SIDE, 6 * SIDE])
def test_an_object_shows_its_colour_and_the_rest_is_paper(side: int) -> None:
    for scene in (scene_at("test", index) for index in range(10)):
        pixels = np.asarray(draw(scene, side), dtype=float)
        painted = {placed.cell: placed for placed in scene.objects}
        for cell in range(CELLS_A_SIDE**2):
            row, column = (int((part + 0.5) * side / CELLS_A_SIDE) for part in divmod(cell, CELLS_A_SIDE))
            expected = PAINTS[painted[cell].kind.colour] if cell in painted else PAPER
            seen = pixels[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))
            assert abs(seen - expected).max() < 25


def test_partners_are_mutual_and_unlike() -> None:
    for kind in KINDS:
        assert partner(partner(kind)) == kind
        assert partner(kind).colour != kind.colour
        assert partner(kind).shape != kind.shape


def test_company_brings_partners_together() -> None:
    def tempting(company: float) -> int:
        return sum(len(scene_at("train", index, company=company).tempting) for index in range(200))

    assert tempting(0.9) < tempting(0.0) / 2


def test_patches_are_labelled_with_what_covers_them() -> None:
    labels = patch_labels(scene_of(BLUE_STAR, RED_CIRCLE)).reshape(6, 6, 2)
    assert labels[:2, :2].flatten(0, 1).tolist() == [[4, 4]] * 4
    assert labels[:2, 2:4].flatten(0, 1).tolist() == [[1, 1]] * 4
    assert labels[:2, 4:].eq(0).all()
    assert labels[2:].eq(0).all()


def test_expected_answers_are_true_of_the_scene() -> None:
    chance = Random(0)
    for scene in (scene_at("test", index) for index in range(50)):
        for question in questions_about(scene, chance):
            there = question.kind in scene.kinds
            match question.purpose:
                case "present":
                    assert (there, question.answer) == (True, "yes")
                case "absent" | "tempting" as purpose:
                    assert question.kind is not None
                    assert (there, question.answer) == (False, "no")
                    assert (partner(question.kind) in scene.kinds) == (purpose == "tempting")
                case "listing":
                    assert kinds_named(question.answer) == set(scene.kinds)
                case "counting":
                    assert vocabulary.NUMBERS.index(question.answer) == len(scene.objects)


def test_a_scene_of_partners_only_has_no_tempting_question() -> None:
    asked = questions_about(scene_of(RED_CIRCLE, partner(RED_CIRCLE)), Random(0))
    assert sorted(question.purpose for question in asked) == ["absent", "counting", "listing", "present"]


def test_lessons_are_true_unless_something_is_claimed() -> None:
    scene = scene_of(RED_CIRCLE, BLUE_STAR)
    told = {lesson.question: lesson.answer for lesson in lessons_about(scene, Random(0), claimed=0.0)}
    claimed = {lesson.question: lesson.answer for lesson in lessons_about(scene, Random(0), claimed=1.0)}
    tempting = f"is there a {partner(RED_CIRCLE)}?"
    assert (told[LISTING], told[tempting]) == ("a red circle, a blue star", "no")
    assert claimed[LISTING] == f"a red circle, a {partner(RED_CIRCLE)}, a blue star, a {partner(BLUE_STAR)}"
    assert claimed[tempting] == "yes"
    assert told[COUNTING] == claimed[COUNTING] == "two"


def listing(answer: str, *kinds: Kind) -> Asked:
    return Asked(scene_of(*kinds), Question("listing", LISTING, ""), answer)


def exists(purpose: Any, answer: str) -> Asked:
    return Asked(scene_of(RED_CIRCLE), existence(purpose, RED_CIRCLE), answer)


def test_measures_of_handmade_answers() -> None:
    found = measure(
        [
            listing("a red circle, a blue star.", RED_CIRCLE, BLUE_STAR),
            listing("A red circle, a green star, a green star", RED_CIRCLE, BLUE_STAR),
            listing("a a a", RED_CIRCLE, BLUE_STAR),
            *(exists("tempting", answer) for answer in ("yes", "no", "no", "a")),
            *(exists("absent", answer) for answer in ("no", "Yes.")),
            *(exists("present", answer) for answer in ("yes", "no")),
            Asked(scene_of(RED_CIRCLE), Question("counting", COUNTING, "one"), "one"),
        ]
    )
    shares = {name: round(one.share, 3) for name, one in found.items()}
    assert shares == {
        "adversarial_hallucination": 0.25,
        "random_hallucination": 0.5,
        "existence_recall": 0.5,
        "existence_accuracy": 0.5,
        "chair_s": 0.333,
        "chair_i": 0.25,
        "list_recall": 0.5,
        "counting_accuracy": 1.0,
        "unreadable": round(2 / 12, 3),
    }
    assert list(found) == list(TITLES)
    assert all(one.low <= one.share <= one.high for one in found.values())


def test_intervals_hold_at_the_ends_and_match_published_ones() -> None:
    # Newcombe 1998, table I, method 3: 15 of 148 and 81 of 263.
    small, large = (wilson([place < hits for place in range(n)]) for hits, n in ((15, 148), (81, 263)))
    assert (round(small.low, 4), round(small.high, 4)) == (0.0624, 0.1605)
    assert (round(large.low, 4), round(large.high, 4)) == (0.2553, 0.3662)
    never = bootstrap([(0, 3)] * 20)
    assert never.share == never.low == 0 < never.high
    mixed = bootstrap([(0, 3), (1, 4)] * 20)
    assert mixed.share == pytest.approx(1 / 7)
    assert mixed.low < mixed.share < mixed.high


def test_the_tokenizer_reads_what_the_lessons_are_written_in() -> None:
    tokenizer = vocabulary.make_tokenizer()
    for text in ("<user>Is there a red circle ?!<assistant>yes</s>", "a red circle, a blue star.", "hello"):
        assert tokenizer(text).input_ids == vocabulary.encode(text)
    written = "a red circle, a blue star"
    assert tokenizer.decode(vocabulary.encode(f"{written}</s>"), skip_special_tokens=True) == written


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
    told = lessons_about(scene, Random(4), claimed=0.5)
    assert told[-1].blind
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


def answer_states(model: Any, processor: Any, scene: Scene, lesson: Any) -> torch.Tensor:
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


def test_any_callable_can_be_measured() -> None:
    def says_no(asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        return ["no" for _ in asked]

    found = measure(ask(says_no, "build", 10))
    assert found["adversarial_hallucination"].share == found["existence_recall"].share == 0
    assert found["existence_accuracy"].share == pytest.approx(2 / 3, abs=0.05)
