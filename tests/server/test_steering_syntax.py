"""Steering strings: what they mean, and that writing and reading are inverse."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.steering_syntax import WrittenTerm, parse_profile, parse_steering, parse_strength, written
from steering.errors import InvalidSteering

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
strengths = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30)
terms = st.builds(WrittenTerm, names, st.none() | st.integers(1, 999_999_999), st.none() | strengths)


@given(st.lists(terms, min_size=1, max_size=8))
def test_what_is_written_is_read_back(wanted: list[WrittenTerm]) -> None:
    assert parse_steering(written(wanted), "steering") == tuple(wanted)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_steering(text, "model")
    except InvalidSteering:
        return
    assert all(term.strength is None or math.isfinite(term.strength) for term in found)
    assert parse_steering(written(found), "model") == found


def test_a_string_names_profiles_versions_and_strengths() -> None:
    assert parse_steering("truthful*0.8+concise@2*-.5+calm", "steering") == (
        WrittenTerm("truthful", None, 0.8),
        WrittenTerm("concise", 2, -0.5),
        WrittenTerm("calm", None, None),
    )


BAD_SYNTAX = ["", "+", "a+", "+a", "a++b", "a*", "a*x", "a*1e3", "a*+1", "a*--1", "a*1*2", "a*1_0", "a*١"]
BAD_VERSIONS = ["a@", "a@0", "a@01", "a@-1", "a@1.5", "a@x", "a@1@2", "a*1@2", "a@" + "9" * 10]
BAD_NAMES = ["A", "é", "a b", " a", "a ", "-a", "../a", "a/b", "a" * 65, "a\n"]


@pytest.mark.parametrize("text", [*BAD_SYNTAX, *BAD_VERSIONS, *BAD_NAMES, "a*nan", "a*inf"])
def test_a_string_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(InvalidSteering) as refused:
        parse_steering(text, "steering")
    assert refused.value.param == "steering"
    assert len(refused.value.message) < 300


def test_a_profile_may_carry_a_version() -> None:
    assert parse_profile("calm", "p") == ("calm", None)
    assert parse_profile("calm@12", "p") == ("calm", 12)
    with pytest.raises(InvalidSteering):
        parse_profile("calm*2", "p")


def test_a_strength_is_a_plain_number() -> None:
    assert parse_strength("-0.25", "p") == -0.25
    for text in ("", "one", "1e3", "nan", "0x1", "1_0", "9" * 500):
        with pytest.raises(InvalidSteering):
            parse_strength(text, "p")
