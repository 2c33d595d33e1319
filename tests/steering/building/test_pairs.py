"""Pairs are read as written, and bad ones are named by line and reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steering.building.building import refuse_overlap, split_pairs
from steering.building.pairs import read_pairs, read_prompts, tokenise_pairs
from steering.errors import InvalidPairs
from steering.loading import LoadedModel

GOOD = '{"input": {"messages": [{"role": "user", "content": "q"}]}, '
ANSWER = '[{"role": "assistant", "content": "%s"}]'


def line(preferred: str, dispreferred: str) -> str:
    return GOOD + f'"preferred_output": {preferred}, "non_preferred_output": {dispreferred}' + "}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"input": {}}', "no 'preferred_output'"),
        (line(ANSWER % "a", ANSWER % " "), "empty content"),
        (line(ANSWER % "a", ANSWER % "a "), "are the same"),
        (line("[]", ANSWER % "a"), "must be a list of messages"),
        (line('[{"role": "user", "content": "a"}]', ANSWER % "b"), "role 'assistant'"),
        (line('[{"role": "assistant", "content": 3}]', ANSWER % "b"), "must be strings"),
        (line(ANSWER % "a", ANSWER % "b").replace('"messages"', '"message"'), "'input.messages'"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line(ANSWER % "a", ANSWER % "b") + "\n\n" + text)
    with pytest.raises(InvalidPairs, match="line 3: ") as error:
        read_pairs(path)
    assert reason in error.value.message


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(InvalidPairs, match="cannot be read"):
        read_pairs(path)
    path.write_text("\n")
    with pytest.raises(InvalidPairs, match="no pairs"):
        read_pairs(path)


def test_duplicates_are_left_out_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([line(ANSWER % "a", ANSWER % "b"), line(ANSWER % "a", ANSWER % "c")] * 2))
    found = read_pairs(path)
    assert [pair.line for pair in found.pairs] == [1, 2]
    assert found.duplicates == (3, 4)


def test_spans_hold_prompt_and_answer_exactly(llama: LoadedModel, pairs_path: Path) -> None:
    pair = tokenise_pairs(llama, read_pairs(pairs_path).pairs[:1])[0]
    assert llama.tokenizer.decode(pair.prompt) == "<|user|>say 0<|end|><|assistant|>"
    assert llama.tokenizer.decode(pair.preferred.ids[pair.preferred.start :]) == "yes, 0!"
    assert llama.tokenizer.decode(pair.dispreferred.ids[pair.dispreferred.start :]) == "no, not 0."


def test_a_pair_that_does_not_fit_the_context_is_named(
    llama: LoadedModel, tmp_path: Path, pair_record: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair_record("q", "long " * llama.context_length, "short")))
    with pytest.raises(InvalidPairs, match=f"line 1 is .* the model reads {llama.context_length}"):
        tokenise_pairs(llama, read_pairs(path).pairs)


def test_held_out_prompts_must_be_held_out(pairs_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"prompt": "say something else"}\n{"prompt": "say 3"}')
    with pytest.raises(InvalidPairs, match="'say 3' is also line 4"):
        refuse_overlap(read_pairs(pairs_path), read_prompts(path))


def test_the_parts_of_a_split_share_nothing_and_follow_the_seed(pairs_path: Path) -> None:
    pairs = read_pairs(pairs_path)
    split = split_pairs(pairs, seed=0, with_test=True)
    lines = [pair.line for part in (split.build, split.dev, split.test) for pair in part]
    assert sorted(lines) == list(range(1, 13))
    assert split == split_pairs(pairs, seed=0, with_test=True)
    assert split != split_pairs(pairs, seed=1, with_test=True)


def test_too_few_pairs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line(ANSWER % "a", ANSWER % "b"))
    with pytest.raises(InvalidPairs, match="too few"):
        split_pairs(read_pairs(path), seed=0, with_test=False)
