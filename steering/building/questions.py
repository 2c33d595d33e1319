"""Multiple-choice questions, and the neutral passages and questions that come with the package."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from steering.building.pairs import Message
from steering.building.readers import conversation, decode, filled, json_lines, read_bytes
from steering.building.record_images import images_of, with_images
from steering.errors import InvalidRequest

# A calibration measures every sixth passage and every second question at each setting.
PASSAGE_STRIDE = 6
CHOICES = "\n\nChoices:\n"


@dataclass(frozen=True, slots=True)
class Question:
    """A multiple-choice question; answer: the right option's place, from 0; images: data URLs.

    One with images is asked as a chat, one without as plain text.
    """

    text: str
    options: tuple[str, ...]
    answer: int
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NeutralAnswer:
    """What a model that is not to change says in a conversation: its loss is that of the answer."""

    messages: tuple[Message, ...]
    text: str


@dataclass(frozen=True, slots=True)
class NeutralText:
    """passages, answers: what the loss is taken on; questions: what the accuracy is taken on."""

    passages: tuple[str, ...]
    questions: tuple[Question, ...]
    answers: tuple[NeutralAnswer, ...] = ()

    def portion(self) -> "NeutralText":
        """Return the fixed part that a calibration can afford at every setting."""
        return replace(self, passages=self.passages[::PASSAGE_STRIDE])


@cache
def neutral_text() -> NeutralText:
    """Return the passages and questions that come with the package."""
    folder = files("steering.building") / "neutral"
    passages = (folder / "passages.txt").read_text(encoding="utf-8").strip().split("\n\n")
    return NeutralText(tuple(passages), parse_questions((folder / "questions.jsonl").read_text("utf-8")))


def read_questions(path: Path) -> tuple[Question, ...]:
    """Return the questions of a file in one of two layouts; InvalidRequest says where it is wrong.

    JSONL: {"question", "options": [...], "answer": place from 0}. JSON, as in the CAA test sets: a list of
    {"prompt": "...\\n\\nChoices:\\n(A) ...\\n(B) ...", "correct": "(A)", "correct_full_text",
    "incorrect_full_text"}.
    """
    try:
        return parse_questions(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidRequest(f"{path} holds no questions that can be asked: {error}") from error


def read_neutral(path: Path) -> NeutralText:
    """Return the neutral text of a JSONL file, which must hold some for the loss and some questions.

    A line is a passage {"text"}, an answer {"prompt", "answer": "its words"}, or a question {"question",
    "options": [...], "answer": place from 0}; the last two may have an `image`, or `images`.
    """
    passages: list[str] = []
    answers: list[NeutralAnswer] = []
    questions: list[Question] = []
    for record in json_lines(path, decode(path, read_bytes(path))):
        try:
            images = images_of(record.where, record.value, path.parent)
            if "text" in record.value:
                passages.append(filled(record.where, "text", record.value["text"]))
            elif "prompt" in record.value:
                messages = conversation(record.where, "prompt", record.value["prompt"])
                answer = filled(record.where, "answer", record.value["answer"])
                answers.append(NeutralAnswer(with_images(record.where, messages, images), answer))
            else:
                questions.append(replace(many_choices(record.value), images=images))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"{record.where}: {type(error).__name__}: {error}") from error
    if not questions or not (passages or answers):
        raise InvalidRequest(
            f"{path} must hold some questions, and some passages {{'text'}} or answers {{'prompt', 'answer'}}"
        )
    return NeutralText(tuple(passages), tuple(questions), tuple(answers))


def parse_questions(text: str) -> tuple[Question, ...]:
    if text.lstrip().startswith("["):
        found = [parsed(two_choices, entry, f"entry {n}") for n, entry in enumerate(json.loads(text), 1)]
    else:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = [parsed(lambda line: many_choices(json.loads(line)), line, f"line {n}") for n, line in lines]
    if not found:
        raise ValueError("it is empty")
    return tuple(found)


def parsed(parse: Callable[[Any], Question], record: Any, place: str) -> Question:
    try:
        return parse(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{place}: {type(error).__name__}: {error}") from error


def many_choices(record: dict[str, Any]) -> Question:
    question, options, answer = record["question"], record["options"], record["answer"]
    if not all(isinstance(text, str) and text.strip() for text in (question, *options)):
        raise ValueError("'question' and 'options' must be texts")
    if len(options) < 2 or len(set(options)) < len(options):
        raise ValueError("'options' must be two or more, all different")
    if type(answer) is not int or not 0 <= answer < len(options):
        raise ValueError(f"'answer' must be the right option's place, 0 to {len(options) - 1}")
    return Question(question, tuple(options), answer)


def two_choices(record: dict[str, Any]) -> Question:
    """Return the question with its two options in the order of their letters."""
    right, wrong = str(record["correct_full_text"]), str(record["incorrect_full_text"])
    answer = ("(A)", "(B)").index(record["correct"])
    return Question(record["prompt"].split(CHOICES)[0], (wrong, right) if answer else (right, wrong), answer)
