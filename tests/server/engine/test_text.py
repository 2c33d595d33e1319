"""Text comes out in whole characters, and never past a stop string."""

from functools import cache
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from server.engine.text import Detokenizer, StopMatcher
from server.engine.token_bytes import token_bytes
from tests.tiny_models import tiny_tokenizer


def pieces_of(tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(tiny_tokenizer())
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@given(st.text(max_size=40))
def test_streamed_pieces_join_to_the_text_and_hold_no_half_character(text: str) -> None:
    tokens = tiny_tokenizer()(text)["input_ids"]
    pieces = pieces_of(tokens)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, len(tiny_tokenizer()) - 1), max_size=60))
def test_any_tokens_at_all_stream_to_what_they_decode_to(tokens: list[int]) -> None:
    whole = tiny_tokenizer().decode(tokens, skip_special_tokens=True)
    streamed = "".join(pieces_of(tokens))
    assert whole.startswith(streamed)
    assert whole[len(streamed) :] in ("", "\ufffd")


def test_a_character_of_four_bytes_comes_out_when_its_last_byte_does() -> None:
    tokens = tiny_tokenizer()("🐳")["input_ids"]
    *early, last, rest = pieces_of(tokens)
    assert (early, last, rest) == ([""] * (len(tokens) - 1), "🐳", "")


def test_an_answer_that_ends_inside_a_character_ends_before_it() -> None:
    tokens = tiny_tokenizer()("a🐳")["input_ids"][:-1]
    assert "".join(pieces_of(tokens)) == "a"
    special = tiny_tokenizer().convert_tokens_to_ids("<|user|>")
    assert "".join(pieces_of([*tokens, special])) == "a"


def test_bytes_that_are_no_character_are_told_as_such() -> None:
    stray = tiny_tokenizer().convert_tokens_to_ids("Ģ")  # it may only go on with a character, not begin one
    assert "".join(pieces_of([stray] * 4)) == "\ufffd" * 4


def test_stray_bytes_without_end_do_not_pile_up() -> None:
    stray = tiny_tokenizer().convert_tokens_to_ids("Ģ")
    assert any(pieces_of([stray] * 200)[:100])


@cache
def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that, as Llama 2's, takes the space off the first word that it decodes."""
    words = ["▁the", "▁sky", "▁is", "▁blue", "."]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "."))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_continuation_keeps_the_space_before_its_first_word() -> None:
    continued = Detokenizer(spaced_tokenizer(), before=[0, 1])
    assert [continued.push(token) for token in (2, 3, 4)] == [" is", " blue", "."]
    anew = Detokenizer(spaced_tokenizer())
    assert [anew.push(token) for token in (2, 3, 4)] == ["is", " blue", "."]


def test_a_prompt_that_ends_inside_a_character_is_no_context() -> None:
    whale = tiny_tokenizer()("🐳")["input_ids"]
    continued = Detokenizer(tiny_tokenizer(), before=whale[:-1])
    assert continued.push(tiny_tokenizer()("a")["input_ids"][0]) == "a"


def test_a_tokens_text_has_its_space() -> None:
    assert token_bytes(spaced_tokenizer(), 3) == (" blue", b" blue")


def split_every_way(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 30)),
)
def test_text_stops_before_the_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher, out, stopped = StopMatcher(stops), "", False
    for piece in split_every_way(text, cuts):
        certain, stopped = matcher.push(piece)
        out += certain
        if stopped:
            break
    out += matcher.flush()
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    assert stopped == bool(ends)
    assert not any(stop in out for stop in stops)
    assert text.startswith(out)
    if not ends:
        assert out == text


@given(st.text(min_size=1, max_size=20))
def test_the_bytes_of_tokens_join_to_the_bytes_of_the_text(text: str) -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer(text)["input_ids"]
    assert b"".join(token_bytes(tokenizer, token)[1] for token in tokens) == text.encode()
