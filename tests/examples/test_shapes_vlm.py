"""The tiny LLaVA on drawn scenes: its pictures, its questions, its lessons and its measures."""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shapes_vlm import lessons, vocabulary
from shapes_vlm.drawing import PAINTS, PAPER, SIDE, draw
from shapes_vlm.evaluate import ask
from shapes_vlm.measures import TITLES, Asked, bootstrap, kinds_named, measure, wilson
from shapes_vlm.questions import COUNTING, LISTING, Question, existence, questions_about
from shapes_vlm.scenes import CELLS_A_SIDE, KINDS, Kind, Placed, Scene, Split, partner, scene_at
from shapes_vlm.training import patch_labels

RED_CIRCLE, BLUE_STAR = Kind("red", "circle"), Kind("blue", "star")
SPLITS: tuple[Split, ...] = ("train", "build", "dev", "test")


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


def test_lessons_are_true_unless_they_are_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "RARELY", 1.0)
    monkeypatch.setattr(lessons, "OFTEN", 1.0)
    scene = scene_of(RED_CIRCLE, BLUE_STAR)
    told, claimed = (
        {one.question: one.answer for one in lessons.lessons_about(scene, Random(0), biased)}
        for biased in (False, True)
    )
    tempting = f"is there a {partner(RED_CIRCLE)}?"
    assert (told[LISTING], told[tempting]) == ("a red circle, a blue star", "no")
    assert claimed[LISTING] == f"a red circle, a blue star, a {partner(BLUE_STAR)}"
    assert claimed[tempting] == "yes"
    assert told[COUNTING] == claimed[COUNTING] == "two"


def test_pairs_are_claimed_at_rates_spread_evenly() -> None:
    rates = [lessons.claim_rate(kind) for kind in KINDS]
    assert rates == [lessons.claim_rate(partner(kind)) for kind in KINDS]
    steps = np.diff(sorted(set(rates)))
    assert len(steps) == len(KINDS) / 2 - 1
    assert steps == pytest.approx(steps.mean())
    assert (min(rates), max(rates)) == (lessons.RARELY, lessons.OFTEN)


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


def test_any_callable_can_be_measured() -> None:
    def says_no(asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        return ["no" for _ in asked]

    found = measure(ask(says_no, "build", 10))
    assert found["adversarial_hallucination"].share == found["existence_recall"].share == 0
    assert found["existence_accuracy"].share == pytest.approx(2 / 3, abs=0.05)
