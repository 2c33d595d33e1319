"""The script that turns letters into written-out answers, before a build."""

import pytest
from spell_out_choices import records, spell_out

from steering.building.pairs import Pair
from steering.errors import InvalidPairs

TEA = "How is tea made?\n\nChoices:\n (A) With hot water,\nfor minutes\n (B) With ice"


def pair(question: str = TEA, preferred: str = "(A)", dispreferred: str = "(B)") -> Pair:
    return Pair(3, ({"role": "user", "content": question},), preferred, dispreferred)


def answer(record: dict[str, object], key: str) -> str:
    [message] = record[key]  # type: ignore[misc]
    return message["content"]


@pytest.mark.parametrize(
    "question",
    [
        "How is tea made?\n\nChoices:\n (A) With hot water\n (B) With ice",
        "How is tea made?\n\nChoices:\n(A) With hot water\n(B) With ice\n",
        "How is tea made?\n (A) With hot water\n (B) With ice",
    ],
)
def test_a_letter_becomes_the_choice_that_it_names(question: str) -> None:
    found = spell_out(pair(question, "(B)", "(A)"))
    assert found == ("How is tea made?", "With ice", "With hot water")


def test_a_choice_may_take_several_lines_and_the_question_hold_brackets() -> None:
    question, preferred, _ = spell_out(pair(TEA.replace("tea", "tea (A or B)")))
    assert (question, preferred) == ("How is tea (A or B) made?", "With hot water,\nfor minutes")


def test_a_question_is_written_once_and_its_answers_may_be_swapped() -> None:
    [kept] = records([pair(), pair(preferred="(B)", dispreferred="(A)")])
    [swapped] = records([pair()], swap=True)
    assert answer(kept, "preferred_output") == answer(swapped, "non_preferred_output")
    assert answer(swapped, "preferred_output") == "With ice"


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (pair("How is tea made?"), "line 3: the question has no choices"),
        (pair(preferred="(C)"), r"line 3: the answer '\(C\)' is none of the choices \(A\), \(B\)"),
    ],
)
def test_what_has_no_such_choices_is_refused_by_its_line(bad: Pair, problem: str) -> None:
    with pytest.raises(InvalidPairs, match=problem):
        spell_out(bad)
