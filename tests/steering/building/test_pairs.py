"""Pairs become tokens exactly as written, and those that cannot be used are named with the reason."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steering.building.building import refuse_overlap, split_pairs
from steering.building.pairs import (
    LeftOut,
    TokenisedPair,
    TokenSequence,
    describe_left_out,
    leave_out_long,
    parted,
    tokenise_pairs,
    tokenise_prompt,
)
from steering.building.readers import read_pairs, read_prompts
from steering.errors import InvalidPairs
from steering.loading import LoadedModel


def test_spans_hold_prompt_and_answer_exactly(llama: LoadedModel, pairs_path: Path) -> None:
    pair = tokenise_pairs(llama, read_pairs(pairs_path).pairs[:1])[0]
    assert llama.tokenizer.decode(pair.prompt) == "<|user|>say 0<|end|><|assistant|>"
    assert llama.tokenizer.decode(pair.preferred.ids[pair.preferred.start :]) == "yes, 0!"
    assert llama.tokenizer.decode(pair.dispreferred.ids[pair.dispreferred.start :]) == "no, not 0."


def test_pairs_that_do_not_fit_the_context_are_left_out_and_reported(
    llama: LoadedModel, pairs_path: Path, pair_record: Callable[..., dict[str, Any]]
) -> None:
    before = pairs_path.read_text().splitlines()
    long = pair_record("q", "short", "long " * llama.context_length)
    pairs_path.write_text("\n".join([before[0], json.dumps(long), *before]))
    found = leave_out_long(llama, read_pairs(pairs_path))
    assert [left.line for left in found.left_out] == [2, 3]
    assert f"model's context of {llama.context_length} tokens" in found.left_out[0].reason
    assert [pair.line for pair in found.pairs] == [1, *range(4, 15)]


def test_a_pair_as_long_as_the_context_is_used(
    llama: LoadedModel, pairs_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = read_pairs(pairs_path)
    longest = max(len(pair.dispreferred.ids) for pair in tokenise_pairs(llama, pairs.pairs))
    config = llama.model.config.get_text_config()
    monkeypatch.setattr(config, "max_position_embeddings", longest)
    assert leave_out_long(llama, pairs) == pairs
    monkeypatch.setattr(config, "max_position_embeddings", longest - 1)
    assert leave_out_long(llama, pairs).left_out


def test_a_template_that_refuses_a_conversation_is_named(llama: LoadedModel) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(InvalidPairs, match="refuses the prompt 'hello': no system here"):
        tokenise_prompt(replace(llama, tokenizer=tokenizer), [{"role": "user", "content": "hello"}])


def test_of_many_lines_left_out_the_first_are_named_and_the_others_counted() -> None:
    left_out = [LeftOut(line, "too long") for line in range(1, 14)] + [LeftOut(20, "empty")]
    assert describe_left_out(left_out) == (
        "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more (too long); line 20 (empty)"
    )


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


def test_too_few_pairs_are_refused_with_the_reasons_of_those_left_out(
    pairs_path: Path, pair_record: Callable[..., dict[str, Any]]
) -> None:
    records = [pair_record("q", "a", "b")] * 2 + [pair_record("q", "a", "a"), pair_record("r", "a", "a")]
    pairs_path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(InvalidPairs, match="1 pairs are too few") as error:
        split_pairs(read_pairs(pairs_path), seed=0, with_test=False)
    assert "line 2 (an earlier line says the same)" in error.value.message
    assert "lines 3, 4 (both answers are the same)" in error.value.message


@pytest.mark.parametrize(
    ("preferred", "dispreferred", "start"),
    [((1, 2, 5), (1, 2, 6), 2), ((1, 2, 7, 5), (1, 2, 7, 6, 6), 3), ((1, 2, 7), (1, 2, 7, 8), 2)],
)
def test_a_prompt_goes_on_while_its_answers_agree_and_leaves_each_a_token(
    preferred: tuple[int, ...], dispreferred: tuple[int, ...], start: int
) -> None:
    pair = TokenisedPair(TokenSequence(preferred, 2), TokenSequence(dispreferred, 2))
    found = parted(pair)
    assert found.preferred.start == found.dispreferred.start == start
    assert (found.preferred.ids, found.dispreferred.ids) == (preferred, dispreferred)
