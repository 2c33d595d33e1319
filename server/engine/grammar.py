"""Constrained decoding: which tokens keep an answer inside a JSON schema. llguidance does the work."""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.hf import from_tokenizer
from torch import Tensor

from server.nesting import MOST_DEPTH, children, deeper
from steering.errors import InvalidRequest
from vector_store.names import quoted

# JSON on one line: white space that may go on for ever is where a model idles.
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# oneOf is read as anyOf: the alternatives of real schemas exclude each other.
OPTIONS: Any = {**ONE_LINE, "coerce_one_of": True}
MOST_EXACT = 2**53  # beyond it neighbouring integers are one number to many readers of JSON
MOST_SCHEMA_BYTES = 128 * 1024
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
SETTINGS = "x-guidance"  # of llguidance, inside a schema
REMEMBERED = 64
TRIED = 4


class UnsupportedSchema(InvalidRequest):
    code = "invalid_json_schema"


class Matcher:
    """Follows one answer through its grammar, token by token; the end tokens may come where it may end."""

    def __init__(self, matcher: LLMatcher, end_tokens: Sequence[int], place: str) -> None:
        self._matcher = matcher
        self._place = place
        self._end_tokens = list(end_tokens)

    @property
    def complete(self) -> bool:
        """Whether what there is satisfies the schema and nothing can follow."""
        return bool(self._matcher.is_stopped() and self._matcher.is_accepting())

    def end(self) -> None:
        """Take an end token; raises UnsupportedSchema where the answer may not end."""
        if not self._matcher.is_accepting():
            raise UnsupportedSchema(
                "the schema spells a token that ends answers, which this engine cannot write as text",
                self._place,
            )

    def allowed(self) -> Tensor:
        """Return which tokens may come next, bool [vocabulary]."""
        mask = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8).astype(bool)
        self._check()
        mask[self._end_tokens] = self._matcher.is_accepting()
        if not mask.any():
            raise UnsupportedSchema(
                "no token of this model writes what the schema wants next; change what it spells", self._place
            )
        return torch.from_numpy(mask)

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        if self._matcher.stop_reason() in ("ParserTooComplex", "LexerTooComplex"):
            why = "the JSON schema takes more work than this server does; simplify it"
        else:
            why = f"the answer cannot be kept to the JSON schema: {told(self._matcher.get_error())}"
        raise UnsupportedSchema(why, self._place)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match: a JSON schema, checked and compiled.

    schema: its text. place: where in the request it stands.
    """

    schema: str
    compiled: LLMatcher = field(compare=False, repr=False)
    end_tokens: Sequence[int] = field(compare=False, repr=False)
    place: str = field(compare=False)

    @property
    def annotated(self) -> str:
        """The schema with the options that it is compiled with, for engines that compile it themselves."""
        return json.dumps({**json.loads(self.schema), SETTINGS: OPTIONS})

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of an answer."""
        return Matcher(self.compiled.deep_copy(), self.end_tokens, self.place)


class Grammars:
    """Compiles JSON schemas for one model; safe to use from several threads.

    end_tokens: those that end an answer, allowed where the schema is satisfied.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int, end_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._end_tokens = list(end_tokens)
        self._prepared: LLTokenizer | None = None
        self._known: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def of_schema(self, schema: Mapping[str, Any], place: str) -> Grammar:
        """Return the grammar of a JSON schema; raises UnsupportedSchema on `place`."""
        text = json.dumps(schema)
        if len(text) > MOST_SCHEMA_BYTES or deeper(schema, MOST_DEPTH):
            raise UnsupportedSchema(
                f"the schema is too large: the most is {MOST_SCHEMA_BYTES} bytes, {MOST_DEPTH} levels",
                place,
            )
        refuse_inexact(schema, place)
        with self._lock:
            if text not in self._known:
                self._known[text] = self._compile(text, place)
            self._known.move_to_end(text)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return Grammar(text, self._known[text], self._end_tokens, place)

    def _compile(self, text: str, place: str) -> LLMatcher:
        if self._prepared is None:
            self._prepared = self._prepare(place)
        written = LLMatcher.grammar_from_json_schema(text, overrides=OPTIONS)
        compiled = LLMatcher(self._prepared, written, log_level=0)
        error = tried(compiled.deep_copy())
        if error:
            raise UnsupportedSchema(f"the schema cannot be followed: {told(error)}", place)
        return compiled

    def _prepare(self, place: str) -> LLTokenizer:
        try:
            native = from_tokenizer(self._tokenizer, self._vocabulary_size)
        except ValueError as error:
            raise InvalidRequest("this model's tokenizer cannot be constrained to JSON", place) from error
        words = TokenizerWrapper(Words(native, self._end_tokens))
        return LLTokenizer(words, eos_token=self._end_tokens or native.eos_tokens)


class Words:
    """A tokenizer, as llguidance reads one, whose special tokens are of no text.

    What a schema forces is tokenised: `<|im_end|>` in a constant is text, and must not end the answer.
    """

    def __init__(self, native: LLTokenizer, end_tokens: Sequence[int]) -> None:
        ids = range(native.vocab_size)
        special = {token for token in ids if native.is_special_token(token)} | set(end_tokens)
        self.tokens = [native.decode_bytes([token]) for token in ids]
        self.special_token_ids = sorted(special)
        self.eos_token_id = native.eos_token
        self.bos_token_id = None
        self._native = native
        self._special = special

    def __call__(self, text: str) -> list[int]:
        tokens = self._native.tokenize_str(text)
        if self._special.isdisjoint(tokens):
            return tokens
        return [token for letter in text for token in self._native.tokenize_str(letter)]


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
    """Return what is wrong with a schema, without the state of a parser, cut to what an answer may quote."""
    if "NoExtensionBias" in error:
        return "a reference in it leads back to itself before anything is written"
    return " ".join(error.partition("<state>")[0].split())[:300]


def refuse_inexact(schema: Any, place: str) -> None:
    """Refuse numbers that cannot be kept to, and settings of the compiler."""
    if isinstance(schema, Mapping):
        bounds = [value for key, value in schema.items() if key in BOUNDS and isinstance(value, float)]
        for number in bounds:
            refuse_beyond(number, place)
        factor = schema.get("multipleOf", 1)
        if isinstance(factor, int | float) and factor <= 0:
            raise UnsupportedSchema("multipleOf must be above zero", place)
        if SETTINGS in schema:
            raise UnsupportedSchema(f"{SETTINGS!r} is no part of a schema here; leave it out", place)
    if isinstance(schema, int):
        refuse_beyond(schema, place)
    for child in children(schema):
        refuse_inexact(child, place)


def refuse_beyond(number: float, place: str) -> None:
    if abs(number) > MOST_EXACT:
        raise UnsupportedSchema(
            f"{quoted(str(number))} cannot be kept to exactly; numbers go up to 2^53, send larger ones as "
            "strings",
            place,
        )
