"""Preference pairs: what they are, and their tokens; files of them are read in steering.building.readers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

from jinja2 import TemplateError

from steering.building.pictured import rendered_with_images, tokenise_pictured, tokenise_rendered, urls_of
from steering.errors import InvalidPairs
from steering.loading import LoadedModel

LINES_NAMED = 10

# role, content, and where there are some "images": data URLs, which come before the words.
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """A conversation, the answer that is wanted and the one that is not.

    line: where the pair begins in its file, from 1.
    """

    line: int
    messages: tuple[Message, ...]
    preferred: str
    dispreferred: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The line of a pair that is not used, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class PairsFile:
    """The pairs of a file that are used, those that are not, and the file's SHA-256."""

    pairs: tuple[Pair, ...]
    left_out: tuple[LeftOut, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids whose part from `start` on is read or scored.

    ablated: positions whose embedding is replaced; see steering.building.ablation.
    """

    ids: tuple[int, ...]
    start: int
    ablated: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenisedPair:
    """The prompt's tokens with either answer's; both sequences start at the answer's first token."""

    preferred: TokenSequence
    dispreferred: TokenSequence

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.preferred.ids[: self.preferred.start]


def parted(pair: TokenisedPair) -> TokenisedPair:
    """Return the pair with the beginning that both answers share in the prompt; each keeps a token."""
    first, second = pair.preferred, pair.dispreferred
    most = min(len(first.ids), len(second.ids)) - 1
    start = first.start
    while start < most and first.ids[start] == second.ids[start]:
        start += 1
    return TokenisedPair(replace(first, start=start), replace(second, start=start))


def describe_left_out(left_out: Sequence[LeftOut]) -> str:
    """Return "lines 4, 9 (both answers are the same); line 7 (an answer is empty)"; of many, the first."""
    lines: dict[str, list[int]] = {}
    for left in left_out:
        lines.setdefault(left.reason, []).append(left.line)
    return "; ".join(f"{name_lines(found)} ({reason})" for reason, found in lines.items())


def name_lines(lines: Sequence[int]) -> str:
    named = ", ".join(map(str, lines[:LINES_NAMED]))
    more = f" and {len(lines) - LINES_NAMED} more" if len(lines) > LINES_NAMED else ""
    return f"line{'s' if len(lines) > 1 else ''} {named}{more}"


def leave_out_long(loaded: LoadedModel, pairs: PairsFile) -> PairsFile:
    """Return the pairs file with those left out that are longer than the model's context."""
    lengths = [token_count(pair) for pair in tokenise_pairs(loaded, pairs.pairs)]
    fits = [length <= loaded.context_length for length in lengths]
    reason = f"longer than the model's context of {loaded.context_length} tokens"
    long = [LeftOut(pair.line, reason) for pair, fit in zip(pairs.pairs, fits, strict=True) if not fit]
    left_out = sorted([*pairs.left_out, *long], key=lambda left: left.line)
    return replace(pairs, pairs=tuple(compress(pairs.pairs, fits)), left_out=tuple(left_out))


def refuse_long_prompts(loaded: LoadedModel, prompts: Sequence[Sequence[Message]], max_tokens: int) -> None:
    room = loaded.context_length - max_tokens
    for number, prompt in enumerate(prompts, 1):
        length = len(tokenise_prompt(loaded, prompt))
        if length > room:
            raise InvalidPairs(
                f"test prompt {number} is {length} tokens long; with {max_tokens} tokens of answer the model "
                f"has room for {room}"
            )


def token_count(pair: TokenisedPair) -> int:
    return max(len(pair.preferred.ids), len(pair.dispreferred.ids))


def tokenise_pairs(loaded: LoadedModel, pairs: Sequence[Pair]) -> tuple[TokenisedPair, ...]:
    """Return the pairs as tokens, also those that leave_out_long would leave out."""
    return tuple(tokenise_pair(loaded, pair) for pair in pairs)


def tokenise_pair(loaded: LoadedModel, pair: Pair) -> TokenisedPair:
    prompt = tokenise_prompt(loaded, pair.messages)
    answers = [tokenise_text(loaded, text) for text in (pair.preferred, pair.dispreferred)]
    return TokenisedPair(*(TokenSequence(prompt + answer, len(prompt)) for answer in answers))


def tokenise_prompt(loaded: LoadedModel, messages: Sequence[Message]) -> tuple[int, ...]:
    """Return the conversation up to where the answer begins, in the model's chat template.

    A tokenizer without a template gets the messages' contents, one a line.
    Raises InvalidPairs where the template refuses the messages, as some do with a system's.
    """
    if urls_of(messages):
        return tokenise_pictured(loaded, messages)
    if loaded.processor is None and loaded.tokenizer.chat_template is None:
        text = "".join(message["content"] + "\n" for message in messages)
        return tuple(loaded.tokenizer(text)["input_ids"])
    return tokenise_text(loaded, rendered(loaded, messages))


def tokenise_demonstration(
    loaded: LoadedModel, shown: Pair, answer: str, asked: Pair
) -> tuple[TokenisedPair, range]:
    """Return a pair whose prompt begins with another one's prompt and `answer`, and where that answer stands.

    Raises InvalidPairs where the chat template changes an earlier turn of the assistant.
    """
    head = tokenise_prompt(loaded, shown.messages)
    example = tokenise_text(loaded, answer)
    turns = [message for message in asked.messages if message["role"] != "system"]
    if loaded.processor is None and loaded.tokenizer.chat_template is None:
        text = "".join(message["content"] + "\n" for message in turns)
        tail = tokenise_text(loaded, "\n" + text)
    else:
        before = rendered(loaded, shown.messages) + answer
        whole = rendered(loaded, [*shown.messages, {"role": "assistant", "content": answer}, *turns])
        if not whole.startswith(before):
            raise InvalidPairs(
                "the model's chat template changes earlier answers; use the reading 'response'"
            )
        tail = tokenise_rest(loaded, whole.removeprefix(before), urls_of(turns))
    prompt = (*head, *example, *tail)
    answers = [tokenise_text(loaded, text) for text in (asked.preferred, asked.dispreferred)]
    continued = TokenisedPair(*(TokenSequence(prompt + answer, len(prompt)) for answer in answers))
    return continued, range(len(head), len(head) + len(example))


def tokenise_rest(loaded: LoadedModel, text: str, urls: Sequence[str]) -> tuple[int, ...]:
    return tokenise_rendered(loaded, text, urls) if urls else tokenise_text(loaded, text)


def rendered(loaded: LoadedModel, messages: Sequence[Message]) -> str:
    if loaded.processor is not None:
        return rendered_with_images(loaded, messages)
    conversation = list(messages)
    try:
        return str(
            loaded.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        )
    except TemplateError as error:
        asked = messages[-1]["content"][:100]
        raise InvalidPairs(f"the model's chat template refuses the prompt {asked!r}: {error}") from error


def tokenise_text(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
