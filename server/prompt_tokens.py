"""Prompts that no template wraps: strings or token ids to what the model reads, and to their echo."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from server.engine.protocol import ModelCard
from server.engine.text import LONGEST_HELD, REPLACEMENT
from server.engine.token_bytes import token_bytes
from server.prompts import UnsupportedImages
from server.sampling_option import check_tokens
from steering.errors import ContextLengthExceeded, InvalidRequest

Asked = str | list[int]


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as its answers repeat it.

    first: the first token's text and bytes; begins: where in `text` each token's text begins.
    """

    text: str
    first: tuple[str, bytes]
    begins: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """One prompt of a request: where it stands in the body, and its token ids."""

    place: str
    tokens: tuple[int, ...]
    echo: Echo | None = None


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Turns prompts into token ids; most_characters: beyond them no text fits into the context."""

    card: ModelCard
    most_characters: int

    def read(self, place: str, prompt: Asked, special: bool, echo: bool) -> TokenPrompt:
        """Return the prompt at this place in the body, or raise what is wrong with it.

        special: a string is read with the tokens that the tokenizer puts around text.
        """
        if isinstance(prompt, str):
            tokens, own = self._tokenised(prompt, place, special)
        else:
            check_tokens(dict.fromkeys(prompt), self.card.vocabulary_size, place)
            tokens, own = tuple(prompt), slice(0, len(prompt))
        self._refuse_placeholders(tokens, place)
        return TokenPrompt(place, tokens, echo_of(prompt, tokens, own, self.card.tokenizer) if echo else None)

    def _tokenised(self, text: str, place: str, special: bool) -> tuple[tuple[int, ...], slice]:
        """Return the text's token ids, and which of them are its own: others may stand around it."""
        if len(text) > self.most_characters:
            raise ContextLengthExceeded(
                f"{place} is {len(text)} characters long, which cannot fit into this model's context; "
                "shorten it",
                place,
            )
        read = self.card.tokenizer(text, add_special_tokens=special, return_special_tokens_mask=True)
        if not read["input_ids"]:
            raise InvalidRequest(f"{place} has no tokens; send at least one", place)
        own = [index for index, added in enumerate(read["special_tokens_mask"]) if not added]
        return tuple(read["input_ids"]), slice(own[0], own[-1] + 1) if own else slice(0, 0)

    def _refuse_placeholders(self, tokens: Sequence[int], place: str) -> None:
        pictured = self.card.pictured
        if pictured is not None and pictured.image_token in tokens:
            raise UnsupportedImages(
                f"{place} holds {pictured.placeholder!r}, which stands for an image in this model; "
                "send images to /v1/chat/completions",
                place,
            )


def placed(prompt: str | list[str] | list[int] | list[list[int]]) -> Iterator[tuple[str, Asked]]:
    """Yield each prompt with its place in the body."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        yield "prompt", prompt
    else:
        for index, each in enumerate(cast(Sequence[Asked], prompt)):
            yield f"prompt[{index}]", each


def text_of(tokens: Sequence[int], tokenizer: Any) -> str:
    """Return the text of the tokens, special ones included."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def echo_of(prompt: Asked, tokens: tuple[int, ...], own: slice, tokenizer: Any) -> Echo:
    """Return the prompt as its answers repeat it; tokens around its own have no place in its text."""
    text = prompt if isinstance(prompt, str) else text_of(tokens, tokenizer)
    inner = tuple(begins_of(tokens[own], tokenizer))
    begins = (0,) * own.start + inner + (len(text),) * (len(tokens) - own.stop)
    return Echo(text, token_bytes(tokenizer, tokens[0]), begins)


def begins_of(tokens: Sequence[int], tokenizer: Any) -> Iterator[int]:
    """Yield where in the text of all tokens each one's text begins; part of a character: where that begins.

    Read through a window, as server.engine.text.Detokenizer does and for its reason.
    """
    window, known, told, held = 0, 0, 0, 0
    for end in range(1, len(tokens) + 1):
        yield told + held
        longer = text_of(tokens[window:end], tokenizer)
        before = len(text_of(tokens[window:known], tokenizer))
        held = max(0, len(longer.rstrip(REPLACEMENT)) - before)
        if not longer.endswith(REPLACEMENT) or end - known >= LONGEST_HELD:
            told, held = told + len(longer) - before, 0
            window, known = known, end
