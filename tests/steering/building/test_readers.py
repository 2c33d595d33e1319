"""Every format gives the same pairs, and what cannot be read is named by line and reason."""

import csv
import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steering.building.pairs import LeftOut, Pair
from steering.building.readers import LAYOUTS, decode, read_pairs, read_prompts
from steering.errors import InvalidPairs

Rows = list[dict[str, Any]]

PLAIN = '{"prompt": "q", "preferred": "a", "dispreferred": "b"}'
OPENAI = (
    '{"input": {"messages": [{"role": "user", "content": "q"}]}, '
    '"preferred_output": %s, "non_preferred_output": %s}'
)
ANSWER = '[{"role": "assistant", "content": "%s"}]'
TEXTS = [("What?\nWhen?", 'é, "so" \u2028 it is', "no"), ("Where?", "here", "there, or\nnowhere")]


def read(tmp_path: Path, content: str | bytes) -> Any:
    path = tmp_path / "pairs"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_pairs(path)


def refusal(tmp_path: Path, content: str | bytes) -> str:
    with pytest.raises(InvalidPairs) as error:
        read(tmp_path, content)
    return error.value.message


def as_csv(rows: Rows) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_lines(rows: Rows) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def as_list(rows: Rows) -> str:
    return json.dumps(rows, indent=4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("write", [as_csv, as_lines, as_list, json.dumps])
@pytest.mark.parametrize("disguise", ["{}", "\ufeff{}\r\n", "\n \n{}\n\n"])
def test_every_layout_in_every_format_gives_the_same_pairs(
    tmp_path: Path, layout: Any, write: Callable[[Rows], str], disguise: str
) -> None:
    rows = [dict(zip(("id", *layout.keys), ("7", *texts), strict=True)) for texts in TEXTS]
    if layout.prompt == "input" and write is not as_csv:
        rows = [{**row, "input": {"messages": [{"role": "user", "content": row["input"]}]}} for row in rows]
    found = read(tmp_path, disguise.replace("{}", write(rows)))
    texts = [(pair.messages[0]["content"], pair.preferred, pair.dispreferred) for pair in found.pairs]
    assert texts == TEXTS
    assert {pair.messages[0]["role"] for pair in found.pairs} == {"user"}
    assert found.left_out == ()


def test_a_prompt_may_be_messages_and_an_answer_one_message(tmp_path: Path) -> None:
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    row = {"prompt": messages, "chosen": [{"role": "assistant", "content": " a"}], "rejected": "b "}
    assert read(tmp_path, json.dumps(row)).pairs == (Pair(1, tuple(messages), "a", "b"),)


@pytest.mark.parametrize("write", [as_csv, as_lines, as_list])
def test_a_system_message_opens_the_conversation_where_there_is_one(
    tmp_path: Path, write: Callable[[Rows], str]
) -> None:
    rows = [
        {"system": system, "prompt": "q", "preferred": "a", "dispreferred": "b"}
        for system in ("Be kind.", "")
    ]
    user = {"role": "user", "content": "q"}
    assert [pair.messages for pair in read(tmp_path, write(rows)).pairs] == [
        ({"role": "system", "content": "Be kind."}, user),
        (user,),
    ]


def test_a_pair_is_named_by_the_line_that_it_begins_on(tmp_path: Path) -> None:
    rows = [dict(zip(("prompt", "preferred", "dispreferred"), texts, strict=True)) for texts in TEXTS]
    assert [pair.line for pair in read(tmp_path, "\n" + as_csv(rows)).pairs] == [3, 5]
    assert [pair.line for pair in read(tmp_path, "\r\n" + as_lines(rows).replace("\n", "\n\n")).pairs] == [
        2,
        4,
    ]
    assert [pair.line for pair in read(tmp_path, "\n" + as_list(rows)).pairs] == [3, 8]
    assert "line 1, item 2: no 'preferred'" in refusal(tmp_path, f'[{PLAIN}, {{"prompt": "q"}}]')


@pytest.mark.parametrize(("write", "first"), [(as_csv, 2), (as_lines, 1)])
def test_what_teaches_nothing_is_left_out_and_reported(
    tmp_path: Path, write: Callable[[Rows], str], first: int
) -> None:
    answers = [("a", "b"), ("a", "c"), (" ", "b"), ("a", "a "), ("a", "b"), ("b", "a")]
    rows = [{"prompt": "q", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    found = read(tmp_path, write(rows))
    assert [pair.line - first for pair in found.pairs] == [0, 1]
    assert found.left_out == (
        LeftOut(first + 2, "an answer is empty"),
        LeftOut(first + 3, "both answers are the same"),
        LeftOut(first + 4, "an earlier line says the same"),
        LeftOut(first + 5, "an earlier line prefers the other answer"),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[1]", "expected a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ("[" + "1" * 10_000 + "]", "too many digits"),
        (
            OPENAI % ('[{"role": "wizard", "content": "a"}]', ANSWER % "b"),
            "'wizard' must be one of system, user",
        ),
        ('{"input": {}}', "no 'preferred_output'; the pairs of this file have input, preferred_output"),
        (PLAIN, "no 'input'"),
        (OPENAI % ("[]", ANSWER % "a"), "must be a string or a list of messages"),
        (OPENAI % ('[{"role": "user", "content": "a"}]', ANSWER % "b"), "role 'assistant'"),
        (OPENAI % ('[{"role": "assistant", "content": 3}]', ANSWER % "b"), "must be strings"),
        (OPENAI % ("[3]", ANSWER % "b"), "a message is an object with 'role' and 'content'"),
        (OPENAI % ("3", ANSWER % "b"), "'preferred_output' must be a string or a list of messages"),
        (OPENAI.replace('"q"', '" "') % ('"a"', '"b"'), "'input.messages': empty content"),
        (OPENAI.replace('"messages"', '"message"') % ('"a"', '"b"'), "'input.messages'"),
        (OPENAI % ('"\\u0000"', '"b"'), "holds a NUL"),
        (OPENAI % ('"\\ud800"', '"b"'), "half of a surrogate pair"),
        (OPENAI.replace('{"input"', '{"system": 3, "input"') % ('"a"', '"b"'), "'system' must be a string"),
        (
            OPENAI.replace("user", "system").replace('{"input"', '{"system": "s", "input"') % ('"a"', '"b"'),
            "has a message of role 'system' too",
        ),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path: Path, text: str, reason: str) -> None:
    good = OPENAI % (ANSWER % "a", ANSWER % "b")
    message = refusal(tmp_path, f"{good}\n\n{text}")
    assert "line 3: " in message
    assert reason in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('prompt,chosen,rejected\n"a\nb",c,d\n\nq,a\n', "line 5: 2 cells, where the header has 3"),
        ("prompt,chosen,rejected\nq,a,b,c\n", "line 2: 4 cells, where the header has 3"),
        ('prompt,chosen,rejected\nq,a,b\nq,"a,b\nq,a,b', "line 3: not CSV: unexpected end of data"),
        ("prompt,chosen,rejected\n,a,b\n", "line 2: 'prompt': empty content"),
        ("prompt,chosen,rejected,Prompt\nq,a,b,q\n", "line 1: two columns have the same name"),
        ('[\n{"a": 1},\n{"b" 2}\n]', "line 3: not JSON: Expecting ':' delimiter at column 6"),
        (f"[{PLAIN}]\n[{PLAIN}]", "line 2: not JSON: Extra data"),
        (f"[\n{PLAIN},\n3]", "line 3, item 2: expected a JSON object"),
    ],
)
def test_a_bad_table_or_list_is_named_with_line_and_reason(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hello, world\nwhat,\n", "line 1: no known format: found hello, world;"),
        ("prompt;preferred;dispreferred\nq;a;b\n", "found prompt;preferred;dispreferred;"),
        ("\n" + json.dumps({"prompt": "q", "answer": "a"}), "line 2: no known format: found prompt, answer;"),
        ('[{"question": "q"}]', "line 1, item 1: no known format: found question;"),
        ("{}", "found no keys;"),
        ("[3]", "expected a JSON object;"),
        (
            '{"prompt": "q", "chosen": "a", "rejected": "b", "correct": "c", "incorrect": "d"}',
            "more than one format: found prompt, chosen, rejected, correct, incorrect;",
        ),
    ],
)
def test_an_unknown_format_is_told_with_those_that_exist(tmp_path: Path, text: str, found: str) -> None:
    message = refusal(tmp_path, text)
    assert found in message
    assert "CSV with a header, JSON lines or a JSON list" in message
    assert all(str(layout) in message for layout in LAYOUTS)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path, start: bytes, ending: bytes) -> None:
    good = PLAIN.encode() + ending
    assert "line 2: byte 0xe9 is not UTF-8" in refusal(tmp_path, start + good + b"caf\xe9")
    assert "line 3: byte 0xff is not UTF-8" in refusal(tmp_path, start + good + good + b"\xff\xfe")
    assert "line 2: a NUL byte" in refusal(tmp_path, start + good + b'{"prompt": "\0"}')


def test_all_ends_of_lines_are_one(tmp_path: Path) -> None:
    assert decode(tmp_path, "\ufeffa\r\nb\rc\nd".encode()) == "a\nb\nc\nd"


@pytest.mark.parametrize("text", ["", "\n", "\ufeff", "[]", "prompt,chosen,rejected\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert "holds no pairs" in refusal(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPairs, match="cannot be read"):
        read_pairs(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("text", ['{"prompt": " "}', '{"question": "q"}', "3"])
def test_a_bad_line_of_prompts_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"prompt": "q"}\n\n' + text)
    with pytest.raises(InvalidPairs, match=r'line 3: expected \{"prompt": "some text"\}'):
        read_prompts(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([PLAIN, f"[{PLAIN}, {PLAIN}]", "prompt,chosen,rejected\nq,a,b\n", ""]),
    place=st.integers(0, 60),
    written=st.binary(max_size=6) | st.text('[]{}":,\n\r \\ud8', max_size=6).map(str.encode),
)
def test_whatever_stands_in_a_file_it_is_read_or_refused(
    tmp_path: Path, start: str, place: int, written: bytes
) -> None:
    path = tmp_path / "pairs"
    path.write_bytes(start.encode()[:place] + written + start.encode()[place:])
    with suppress(InvalidPairs):
        assert all(pair.preferred and pair.dispreferred for pair in read_pairs(path).pairs)
