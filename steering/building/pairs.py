"""Preference pairs: read, checked and tokenised."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steering.errors import InvalidPairs
from steering.loading import LoadedModel

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Pair:
    """One line of a pairs file: a conversation, the answer that is wanted and the one that is not."""

    line: int
    messages: tuple[Message, ...]
    preferred: str
    dispreferred: str


@dataclass(frozen=True, slots=True)
class PairsFile:
    """The pairs of a file; duplicates are the lines left out because an earlier line says the same."""

    pairs: tuple[Pair, ...]
    duplicates: tuple[int, ...]
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


def read_pairs(path: Path) -> PairsFile:
    """Return the pairs of a JSONL file in OpenAI's preference format.

    A line: {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}.
    Raises InvalidPairs, naming the line and the reason.
    """
    content = read_bytes(path)
    seen: dict[tuple[str, str, str], int] = {}
    pairs, duplicates = [], []
    for line, record in json_lines(path, content):
        pair = parse_pair(path, line, record)
        key = (json.dumps(pair.messages), pair.preferred, pair.dispreferred)
        if key in seen:
            duplicates.append(line)
            continue
        seen[key] = line
        pairs.append(pair)
    if not pairs:
        raise InvalidPairs(f"{path} holds no pairs; it needs one JSON object a line")
    return PairsFile(tuple(pairs), tuple(duplicates), hashlib.sha256(content).hexdigest())


def read_prompts(path: Path) -> tuple[tuple[Message, ...], ...]:
    """Return the conversations of a JSONL file of held-out prompts, one {"prompt": "..."} a line."""
    prompts = []
    for line, record in json_lines(path, read_bytes(path)):
        prompt = record.get("prompt") if isinstance(record, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise invalid(path, line, 'expected {"prompt": "some text"}')
        prompts.append(({"role": "user", "content": prompt},))
    return tuple(prompts)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidPairs(f"{path} cannot be read: {error.strerror or error}") from error


def json_lines(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(content.splitlines(), start=1):
        if not text.strip():
            continue
        try:
            yield line, json.loads(text)
        except ValueError as error:
            raise invalid(path, line, f"not JSON: {error}") from error


def parse_pair(path: Path, line: int, record: Any) -> Pair:
    if not isinstance(record, dict):
        raise invalid(path, line, "expected a JSON object")
    for key in ("input", "preferred_output", "non_preferred_output"):
        if key not in record:
            raise invalid(path, line, f"no {key!r}; a pair has input, preferred_output, non_preferred_output")
    messages = record["input"].get("messages") if isinstance(record["input"], dict) else None
    preferred = answer_text(path, line, "preferred_output", record["preferred_output"])
    dispreferred = answer_text(path, line, "non_preferred_output", record["non_preferred_output"])
    if preferred == dispreferred:
        raise invalid(path, line, "preferred_output and non_preferred_output are the same")
    return Pair(line, conversation(path, line, "input.messages", messages), preferred, dispreferred)


def answer_text(path: Path, line: int, key: str, messages: Any) -> str:
    answer = conversation(path, line, key, messages)
    if len(answer) != 1 or answer[0]["role"] != "assistant":
        raise invalid(path, line, f"{key!r} must be one message of role 'assistant'")
    return answer[0]["content"].strip()


def conversation(path: Path, line: int, key: str, messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise invalid(path, line, f"{key!r} must be a list of messages")
    for message in messages:
        if not isinstance(message, dict):
            raise invalid(path, line, f"{key!r}: a message is an object with 'role' and 'content'")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise invalid(path, line, f"{key!r}: 'role' and 'content' must be strings")
        if not content.strip():
            raise invalid(path, line, f"{key!r}: empty content")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def invalid(path: Path, line: int, reason: str) -> InvalidPairs:
    return InvalidPairs(f"{path}, line {line}: {reason}")


def tokenise_pairs(loaded: LoadedModel, pairs: Sequence[Pair]) -> tuple[TokenisedPair, ...]:
    """Return the pairs as tokens; raises InvalidPairs for one that does not fit the model's context."""
    return tuple(tokenise_pair(loaded, pair) for pair in pairs)


def tokenise_pair(loaded: LoadedModel, pair: Pair) -> TokenisedPair:
    prompt = tokenise_prompt(loaded, pair.messages)
    answers = [prompt + tokenise_text(loaded, text) for text in (pair.preferred, pair.dispreferred)]
    longest = max(map(len, answers))
    if longest > loaded.context_length:
        raise InvalidPairs(
            f"the pair on line {pair.line} is {longest} tokens long; the model reads {loaded.context_length}"
        )
    return TokenisedPair(*(TokenSequence(ids, len(prompt)) for ids in answers))


def tokenise_prompt(loaded: LoadedModel, messages: Sequence[Message]) -> tuple[int, ...]:
    """Return the conversation up to where the answer begins, in the model's chat template.

    A tokenizer without a template gets the messages' contents, one a line.
    """
    if loaded.tokenizer.chat_template is None:
        text = "".join(message["content"] + "\n" for message in messages)
        return tuple(loaded.tokenizer(text)["input_ids"])
    text = loaded.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    return tokenise_text(loaded, text)


def tokenise_text(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
