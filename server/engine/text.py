"""From tokens to text: whole characters only, held back while they may begin a stop string."""

import codecs
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from server.engine.token_bytes import token_bytes

NONE_SPELLED: Mapping[int, str] = MappingProxyType({})
REPLACEMENT = "\ufffd"
# Tokens held back for a character to complete. A character has four bytes at most; a model that emits
# nothing but stray bytes must not make every step decode all of them again.
LONGEST_HELD = 64


class Detokenizer:
    """Turns a growing token sequence into text, never emitting part of a character.

    Each step decodes a short window of tokens, so that tokenizers which treat a first token specially
    (a leading space) see the same context before and after. before: tokens that the text goes on
    from, unless they end inside a character. spelled: special tokens that have a text, others have none.
    """

    def __init__(
        self, tokenizer: Any, before: Sequence[int] = (), spelled: Mapping[int, str] = NONE_SPELLED
    ) -> None:
        self._tokenizer = tokenizer
        self._spelled = spelled
        self._tokens = list(before)
        self._begin = 0
        self._emitted = len(self._tokens)
        if self._decode(self._emitted).endswith(REPLACEMENT):
            self._tokens, self._emitted = [], 0

    def push(self, token: int) -> str:
        """Return the text that the token completes; empty while a character is incomplete."""
        if token in self._spelled:
            rest = self.flush()
            self._tokens, self._begin, self._emitted = [token], 0, 1
            return rest + self._spelled[token]
        self._tokens.append(token)
        known, longer = self._decode(self._emitted), self._decode(len(self._tokens))
        if longer.endswith(REPLACEMENT) and len(self._tokens) - self._emitted < LONGEST_HELD:
            return ""
        self._begin, self._emitted = self._emitted, len(self._tokens)
        return longer[len(known) :]

    def flush(self) -> str:
        """Return what is left at the end, without a character that the end cut in half."""
        known, longer = self._decode(self._emitted), self._decode(len(self._tokens))
        rest = longer[len(known) :]
        if rest.endswith(REPLACEMENT) and self._ends_inside_a_character():
            rest = rest[: -len(REPLACEMENT)]
        self._emitted = len(self._tokens)
        return rest

    def _ends_inside_a_character(self) -> bool:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self._tokens[self._emitted :]:
            if self._text_of([token]):  # special tokens have none
                decoder.decode(token_bytes(self._tokenizer, token)[1])
        return bool(decoder.getstate()[0])

    def _decode(self, end: int) -> str:
        return self._text_of(self._tokens[self._begin : end])

    def _text_of(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class StopMatcher:
    """Holds back text that may begin a stop string, and cuts at the first one that completes."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that is certain, and whether a stop string was met."""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            certain, self._held = self._held[: min(found)], ""
            return certain, True
        keep = self._pending()
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain, False

    def flush(self) -> str:
        certain, self._held = self._held, ""
        return certain

    def _pending(self) -> int:
        """Return the length of the longest ending that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            ending = self._held[-length:]
            if any(stop.startswith(ending) for stop in self._stops):
                return length
        return 0
