"""Files of preference pairs and of prompts: recognised, read and checked; errors name the line."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

from steering.building.pairs import LeftOut, Message, Pair, PairsFile
from steering.building.record_images import digest_of, images_of, parts_of, with_images
from steering.errors import InvalidPairs


@dataclass(frozen=True, slots=True)
class Layout:
    """The keys of a record, or a CSV file's columns, that hold the prompt and its two answers."""

    prompt: str
    preferred: str
    dispreferred: str

    @property
    def keys(self) -> tuple[str, str, str]:
        return self.prompt, self.preferred, self.dispreferred

    def __str__(self) -> str:
        return ", ".join(self.keys)


@dataclass(frozen=True, slots=True)
class Record:
    """One pair as its file has it; where: the words with which an error names its place."""

    line: int
    where: str
    value: Any


LAYOUTS = (
    Layout("prompt", "preferred", "dispreferred"),
    Layout("prompt", "chosen", "rejected"),
    Layout("input", "preferred_output", "non_preferred_output"),  # OpenAI's preference format
    Layout("question", "answer_matching_behavior", "answer_not_matching_behavior"),  # nrimsky/CAA
    Layout("prompt", "correct", "incorrect"),  # TruthfulQA and MMLU as nrimsky/CAA has them
)
ROLES = ("system", "user", "assistant")
FORMATS = (
    "pairs are CSV with a header, JSON lines or a JSON list, with one of these sets of columns or keys: "
    + "; ".join(map(str, LAYOUTS))
)


def read_pairs(path: Path) -> PairsFile:
    """Return the pairs of a CSV, JSON lines or JSON list file in one of the LAYOUTS.

    A prompt is a string, a list of messages or {"messages": [...]}, an answer a string or a list of one
    assistant message. A `system` string goes before the prompt; further keys are their owner's. An `image`,
    or a list of `images`, each a data URL or a path beside the file, goes before the prompt's last words; so
    does an `image_url` part of a message before that message's.
    Duplicates, empty answers and answers that are the same are left out.
    Raises InvalidPairs, naming the line, for what cannot be read.
    """
    content = read_bytes(path)
    records = list(read_records(path, decode(path, content)))
    if not records:
        raise InvalidPairs(f"{path} holds no pairs; {FORMATS}")
    layout = recognise(records[0].where, keys_of(records[0]))
    pairs, left_out = choose(parse_pair(record, layout, path.parent) for record in records)
    return PairsFile(pairs, left_out, digest_of(content, pairs))


def read_prompts(path: Path) -> tuple[tuple[Message, ...], ...]:
    """Return the conversations of a JSONL file of held-out prompts, one {"prompt": "..."} a line."""
    prompts = []
    for record in json_lines(path, decode(path, read_bytes(path))):
        prompt = record.value.get("prompt") if isinstance(record.value, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidPairs(f'{record.where}: expected {{"prompt": "some text"}}')
        messages = conversation(record.where, "prompt", prompt)
        images = images_of(record.where, record.value, path.parent)
        prompts.append(with_images(record.where, messages, images))
    if not prompts:
        raise InvalidPairs(f'{path} holds no prompts; it needs one {{"prompt": "some text"}} a line')
    return tuple(prompts)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidPairs(f"{path} cannot be read: {error.strerror or error}") from error


def decode(path: Path, content: bytes) -> str:
    r"""Return the text without a byte order mark, its lines ending in \n."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len((error.object[: error.start] + b".").splitlines())
        byte = error.object[error.start]
        raise InvalidPairs(f"{at(path, line)}: byte 0x{byte:02x} is not UTF-8; save it as UTF-8") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidPairs(f"{at(path, line)}: a NUL byte; this is not a text file")
    return text


def at(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def read_records(path: Path, text: str) -> Iterator[Record]:
    """Yield the file's records; what its first character opens tells how they are written."""
    readers = {"{": json_lines, "[": json_list}
    return readers.get(text.lstrip()[:1], csv_rows)(path, text)


def json_lines(path: Path, text: str) -> Iterator[Record]:
    for line, written in enumerate(text.split("\n"), start=1):
        if written.strip():
            yield Record(line, at(path, line), load_json(path, line, written))


def json_list(path: Path, text: str) -> Iterator[Record]:
    """Yield a list's items with the line that each begins on."""
    count, decoder = len(load_json(path, 1, text)), json.JSONDecoder()
    line, end = 1, 0
    for item in range(1, count + 1):
        begin = next_value(text, end if item > 1 else text.index("[") + 1)
        line += text.count("\n", end, begin)
        value, end = decoder.raw_decode(text, begin)
        yield Record(line, f"{at(path, line)}, item {item}", value)
        line += text.count("\n", begin, end)


def next_value(text: str, position: int) -> int:
    while text[position] in " \t\n,":
        position += 1
    return position


def load_json(path: Path, line: int, text: str) -> Any:
    """Return the value of text, which begins on this line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = at(path, line + error.lineno - 1)
        raise InvalidPairs(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        raise InvalidPairs(f"{at(path, line)}: not JSON that can be read: {reason}") from error


def csv_rows(path: Path, text: str) -> Iterator[Record]:
    """Yield a table's rows by its header's names, with the line that each begins on."""
    rows = csv_cells(path, text)
    for header_line, header in islice(rows, 1):
        names = [name.strip().lower() for name in header]
        recognise(at(path, header_line), names)
        if len(set(names)) < len(names):
            raise InvalidPairs(f"{at(path, header_line)}: two columns have the same name")
    for line, cells in rows:
        if len(cells) != len(names):
            raise InvalidPairs(f"{at(path, line)}: {len(cells)} cells, where the header has {len(names)}")
        yield Record(line, at(path, line), dict(zip(names, cells, strict=True)))


def csv_cells(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader, line = csv.reader(StringIO(text, newline=""), strict=True), 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InvalidPairs(f"{at(path, line)}: not CSV: {error}") from error


def recognise(where: str, keys: Iterable[str]) -> Layout:
    """Return the one layout whose keys are all there; raise InvalidPairs if none or several are."""
    present = list(keys)
    complete = [layout for layout in LAYOUTS if set(layout.keys) <= set(present)]
    if len(complete) == 1:
        return complete[0]
    found = ", ".join(present)[:100] or "no keys"
    problem = "more than one format" if complete else "no known format"
    raise InvalidPairs(f"{where}: {problem}: found {found}; {FORMATS}")


def keys_of(record: Record) -> Iterable[str]:
    if not isinstance(record.value, dict):
        raise InvalidPairs(f"{record.where}: expected a JSON object; {FORMATS}")
    return record.value.keys()


def parse_pair(record: Record, layout: Layout, folder: Path) -> Pair:
    """Return the record as a pair; its answers may still be empty or the same. folder: its images' place."""
    where, fields = record.where, record.value
    if not isinstance(fields, dict):
        raise InvalidPairs(f"{where}: expected a JSON object")
    for key in layout.keys:
        if key not in fields:
            raise InvalidPairs(f"{where}: no {key!r}; the pairs of this file have {layout}")
    messages = prompt_messages(where, layout.prompt, fields[layout.prompt], fields.get("system"))
    messages = with_images(where, messages, images_of(where, fields, folder))
    answers = [answer_text(where, key, fields[key]) for key in (layout.preferred, layout.dispreferred)]
    return Pair(record.line, messages, answers[0], answers[1])


def prompt_messages(where: str, key: str, value: Any, system: Any) -> tuple[Message, ...]:
    """Return the conversation before the answer, opened by the system's message unless there is none."""
    if isinstance(value, dict):
        key, value = f"{key}.messages", value.get("messages")
    messages = conversation(where, key, value)
    if system is None or system == "":
        return messages
    if messages[0]["role"] == "system":
        raise InvalidPairs(f"{where}: 'system' is there, and {key!r} has a message of role 'system' too")
    return ({"role": "system", "content": filled(where, "system", system)}, *messages)


def conversation(where: str, key: str, value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": "user", "content": filled(where, key, value)},)
    messages = message_list(where, key, value)
    for message in messages:
        filled(where, key, message["content"])
    return messages


def answer_text(where: str, key: str, value: Any) -> str:
    if isinstance(value, str):
        return text_of(where, key, value).strip()
    messages = message_list(where, key, value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise InvalidPairs(f"{where}: {key!r} must be one message of role 'assistant'")
    return messages[0]["content"].strip()


def message_list(where: str, key: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidPairs(f"{where}: {key!r} must be a string or a list of messages")
    return tuple(parse_message(where, key, message) for message in value)


def parse_message(where: str, key: str, message: Any) -> Message:
    if not isinstance(message, dict):
        raise InvalidPairs(f"{where}: {key!r}: a message is an object with 'role' and 'content'")
    role, content = message.get("role"), message.get("content")
    images: list[str] = []
    if isinstance(content, list):
        content, images = parts_of(where, key, content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise InvalidPairs(f"{where}: {key!r}: 'role' and 'content' must be strings")
    if role not in ROLES:
        raise InvalidPairs(f"{where}: {key!r}: a message's role {role!r} must be one of {', '.join(ROLES)}")
    told = {"role": role, "content": text_of(where, key, content)}
    return {**told, "images": tuple(images)} if images else told


def filled(where: str, key: str, value: Any) -> str:
    text = text_of(where, key, value)
    if not text.strip():
        raise InvalidPairs(f"{where}: {key!r}: empty content")
    return text


def text_of(where: str, key: str, value: Any) -> str:
    """Return a string that a tokenizer can read."""
    if not isinstance(value, str):
        raise InvalidPairs(f"{where}: {key!r} must be a string")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidPairs(f"{where}: {key!r} holds a NUL or half of a surrogate pair")
    return value


def choose(pairs: Iterable[Pair]) -> tuple[tuple[Pair, ...], tuple[LeftOut, ...]]:
    """Return the pairs that can teach something, and the others with the reasons."""
    kept: dict[tuple[str, str, str], Pair] = {}
    left_out = []
    for pair in pairs:
        asked = json.dumps(pair.messages)
        key, swapped = (asked, pair.preferred, pair.dispreferred), (asked, pair.dispreferred, pair.preferred)
        if reason := useless(pair) or known(key in kept, swapped in kept):
            left_out.append(LeftOut(pair.line, reason))
        else:
            kept[key] = pair
    return tuple(kept.values()), tuple(left_out)


def known(same: bool, swapped: bool) -> str | None:
    if same:
        return "an earlier line says the same"
    return "an earlier line prefers the other answer" if swapped else None


def useless(pair: Pair) -> str | None:
    if not pair.preferred or not pair.dispreferred:
        return "an answer is empty"
    return "both answers are the same" if pair.preferred == pair.dispreferred else None
