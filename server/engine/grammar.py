"""Constrained decoding: which tokens keep an answer inside a JSON schema. llguidance does the work."""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from steering.errors import InvalidRequest

# White space that JSON may have between its parts: enough to indent, too little to idle in.
WHITE_SPACE = r"[ \n\t]{0,12}"
MOST_SCHEMA_BYTES = 128 * 1024
MOST_SCHEMA_DEPTH = 48
REMEMBERED = 64
TRIED = 4


class UnsupportedSchema(InvalidRequest):
    code = "invalid_json_schema"


class Matcher:
    """Follows one answer through its grammar, token by token; the end tokens may come where it may end."""

    def __init__(self, matcher: LLMatcher, end_tokens: Sequence[int]) -> None:
        self._matcher = matcher
        self._end_tokens = list(end_tokens)

    @property
    def complete(self) -> bool:
        """Whether nothing can follow what there is."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """Return which tokens may come next, bool [vocabulary]."""
        mask = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8).astype(bool)
        self._check()
        if self._matcher.is_accepting():
            mask[self._end_tokens] = True
        return torch.from_numpy(mask)

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UnsupportedSchema("the JSON schema takes more work than this server does; simplify it")


class Grammar:
    """What an answer must match: a JSON schema, checked and compiled; `schema` is for other engines."""

    def __init__(self, schema: str, compiled: LLMatcher, end_tokens: Sequence[int]) -> None:
        self.schema = schema
        self._compiled = compiled
        self._end_tokens = end_tokens

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of an answer."""
        return Matcher(self._compiled.deep_copy(), self._end_tokens)


class Grammars:
    """Compiles JSON schemas for one model; safe to use from several threads.

    end_tokens: those that end an answer, allowed where the schema is satisfied.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int, end_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._end_tokens = list(end_tokens)
        self._prepared: LLTokenizer | None = None
        self._known: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def of_schema(self, schema: Mapping[str, Any], place: str) -> Grammar:
        """Return the grammar of a JSON schema; raises UnsupportedSchema on `place`."""
        text = json.dumps(schema)
        if len(text) > MOST_SCHEMA_BYTES or deeper(schema, MOST_SCHEMA_DEPTH):
            raise UnsupportedSchema(
                f"the schema is too large: the most is {MOST_SCHEMA_BYTES} bytes, {MOST_SCHEMA_DEPTH} levels",
                place,
            )
        with self._lock:
            if text not in self._known:
                self._known[text] = self._compile(text, place)
            self._known.move_to_end(text)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return self._known[text]

    def _compile(self, text: str, place: str) -> Grammar:
        if self._prepared is None:
            self._prepared = self._prepare(place)
        written = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITE_SPACE})
        compiled = LLMatcher(self._prepared, written, log_level=0)
        error = tried(compiled.deep_copy())
        if error:
            raise UnsupportedSchema(f"the schema cannot be followed: {told(error)}", place)
        return Grammar(text, compiled, self._end_tokens)

    def _prepare(self, place: str) -> LLTokenizer:
        try:
            return from_tokenizer(self._tokenizer, self._vocabulary_size)
        except ValueError as error:
            raise InvalidRequest("this model's tokenizer cannot be constrained to JSON", place) from error


def tried(matcher: LLMatcher) -> str:
    """Return what goes wrong within a few tokens, nothing if nothing does: what is too much fails early."""
    for _ in range(TRIED):
        if matcher.is_stopped():
            break
        allowed = np.frombuffer(matcher.compute_logit_bias(), dtype=np.uint8)
        if allowed.any():
            matcher.consume_token(int(allowed.argmax()))
    return str(matcher.get_error())


def told(error: str) -> str:
    """Return the first line of what is wrong with a schema, cut to what an answer may quote."""
    return error.strip().partition("\n")[0][:300]


def deeper(value: Any, levels: int) -> bool:
    if levels < 0:
        return True
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(deeper(child, levels - 1) for child in children)
