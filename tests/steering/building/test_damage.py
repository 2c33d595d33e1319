"""Damage is what the model itself says about neutral text, and the files that come with it are sound."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steering.building.choosing import option_scores
from steering.building.damage import Damage, accuracy_change, measure_damage, tokenise_question
from steering.building.generation import steered_everywhere
from steering.building.questions import NeutralText, Question, neutral_text, read_questions
from steering.errors import InvalidRequest
from steering.loading import LoadedModel

QUESTIONS = (
    Question("which?", ("a long option", "b"), 0),
    Question("how many of them are there?", ("one", "two", "three"), 2),
    Question("x", ("y", "z"), 1),
)


def log_probability(loaded: LoadedModel, prompt: tuple[int, ...], option: tuple[int, ...]) -> float:
    """Return an option's mean log-probability per token from one plain pass over prompt and option."""
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([prompt + option])).logits[0]
    predicted = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return float(predicted.gather(1, torch.tensor(option)[:, None]).mean())


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("size", [0.0, 2.0])
def test_options_score_as_in_one_plain_pass(
    tiny_model: Callable[[str], LoadedModel], family: str, size: float
) -> None:
    loaded = tiny_model(family)
    torch.manual_seed(0)
    deltas = {1: size * torch.randn(loaded.identity.hidden_size)} if size else {}
    choices = [tokenise_question(loaded, question).choice for question in QUESTIONS]
    with torch.no_grad(), steered_everywhere(loaded, deltas):
        found = option_scores(loaded, choices)
        expected = [[log_probability(loaded, c.prompt, option) for option in c.options] for c in choices]
    for own, plain in zip(found, expected, strict=True):
        assert own == pytest.approx(plain, rel=1e-3, abs=1e-4)


def test_loss_and_accuracy_are_those_of_the_passages_and_questions(llama: LoadedModel) -> None:
    passages = ("a quiet day", "rain is expected in the west")
    found = measure_damage(llama, NeutralText(passages, QUESTIONS * 5))({})
    ids = [llama.tokenizer(passage)["input_ids"] for passage in passages]
    with torch.no_grad():
        losses = [llama.model(torch.tensor([i]), labels=torch.tensor([i])).loss * (len(i) - 1) for i in ids]
    assert found.losses == pytest.approx([float(loss) for loss in losses], rel=1e-4)
    assert found.loss == pytest.approx(float(sum(losses)) / sum(len(i) - 1 for i in ids), rel=1e-4)
    choices = [tokenise_question(llama, question).choice for question in QUESTIONS]
    scores = [[log_probability(llama, c.prompt, option) for option in c.options] for c in choices]
    right = tuple(s.index(max(s)) == q.answer for s, q in zip(scores, QUESTIONS, strict=True))
    assert found.correct == right * 5


def test_a_question_longer_than_the_context_is_refused(llama: LoadedModel) -> None:
    with pytest.raises(InvalidRequest, match=f"the model reads {llama.context_length}"):
        tokenise_question(llama, Question("long " * llama.context_length, ("a", "b"), 0))


def test_a_change_of_accuracy_counts_only_questions_that_changed() -> None:
    before = Damage((1.0,), (1,), (True,) * 10 + (False,) * 10)
    after = Damage((1.0,), (1,), (False,) * 3 + (True,) * 8 + (False,) * 9)
    change = accuracy_change(after, before)
    assert change.share == pytest.approx(-2 / 20)
    assert change.error == pytest.approx((4 / 20 - 0.01) ** 0.5 / 20**0.5)
    assert accuracy_change(before, before) == type(change)(0, 0)


def test_the_passages_are_of_like_length_and_all_different() -> None:
    passages = neutral_text().passages
    assert len(set(passages)) == len(passages) == 60
    assert all(40 <= len(passage.split()) <= 80 for passage in passages)


def test_the_questions_are_different_and_no_place_is_more_often_right() -> None:
    questions = neutral_text().questions
    assert len({question.text for question in questions}) == len(questions) == 100
    assert all(len(question.options) == 4 for question in questions)
    assert set(Counter(question.answer for question in questions).values()) == {25}


def test_a_calibrations_portion_is_part_of_the_whole() -> None:
    whole, portion = neutral_text(), neutral_text().portion()
    assert len(portion.passages) == 10
    assert set(portion.passages) < set(whole.passages)
    assert portion.questions == whole.questions


def test_both_layouts_of_questions_are_read(tmp_path: Path) -> None:
    lines, caa = tmp_path / "questions.jsonl", tmp_path / "mmlu.json"
    lines.write_text('{"question": "q", "options": ["a", "b", "c"], "answer": 2}\n\n')
    records = [
        {
            "prompt": f"What?\n\nChoices:\n(A) {a}\n(B) {b}",
            "correct": right,
            "correct_full_text": "yes",
            "incorrect_full_text": "no",
        }
        for a, b, right in (("yes", "no", "(A)"), ("no", "yes", "(B)"))
    ]
    caa.write_text(json.dumps(records))
    assert read_questions(lines) == (Question("q", ("a", "b", "c"), 2),)
    assert read_questions(caa) == (Question("What?", ("yes", "no"), 0), Question("What?", ("no", "yes"), 1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("[]", "it is empty"),
        ("{", "line 1"),
        ('\n{"question": "q", "options": ["a"], "answer": 0}', "line 2: .*two or more"),
        ('{"question": "q", "options": ["a", "a"], "answer": 0}', "all different"),
        ('{"question": "q", "options": ["a", 3], "answer": 0}', "must be texts"),
        ('{"question": "q", "options": ["a", "b"], "answer": 2}', "0 to 1"),
        ('{"question": "q", "options": ["a", "b"], "answer": true}', "0 to 1"),
        ('{"options": ["a", "b"], "answer": 0}', "'question'"),
        ('[{"prompt": "q", "correct": "(A)"}]', "entry 1: .*correct_full_text"),
    ],
)
def test_a_bad_question_is_named_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "questions"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=reason):
        read_questions(path)


def test_a_missing_file_of_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_questions(tmp_path / "absent.jsonl")
