"""What calls look like in the text of a model: the formats, and what reads each."""

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Call = tuple[str, str]  # a function's name, and its arguments as JSON text
Schemas = Mapping[str, Mapping[str, Any]]  # of functions' arguments, by the functions' names
# Text and the schemas of what was offered -> the calls that the text is, none where it is anything else.
Parse = Callable[[str, Schemas], list[Call]]
DECODER = json.JSONDecoder(parse_constant=lambda name: refuse(name))
NAME = r"(?P<name>[\w.-]+)"
PYTHON = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class CallFormat:
    """begin, end: the marks that calls stand between, and parse: what reads the text there.

    Without a begin calls are the whole answer; without an end they go on to the next begin, or to the
    answer's end.
    """

    begin: str
    end: str
    parse: Parse

    def read(self, text: str, schemas: Schemas) -> list[Call]:
        """Return the calls that the text is; models that were taught another format also write JSON."""
        return self.parse(text, schemas) or json_calls(text, schemas)


def json_calls(text: str, _schemas: Schemas) -> list[Call]:
    """Read an object with name and arguments, or a list of them."""
    try:
        value = DECODER.decode(text)
        calls = elements(text.strip()) if isinstance(value, list) else [text.strip()]
        read = [call_of(call) for call in calls]
    except (ValueError, RecursionError):
        return []
    return [call for call in read if call is not None] if all(read) else []


@dataclass(frozen=True)
class NamedCalls:
    """Reads names that JSON objects follow: `prefix` name `between` {...} `suffix`, again and again.

    quote: the mark around strings where they have marks of their own, and keys have none.
    """

    prefix: str
    between: str
    suffix: str
    quote: str = ""

    @cached_property
    def _head(self) -> re.Pattern[str]:
        return re.compile(loose(self.prefix) + NAME + loose(self.between))

    @cached_property
    def _tail(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{loose(self.suffix)})?\s*")

    def __call__(self, text: str, _schemas: Schemas) -> list[Call]:
        text = json_of(text, self.quote) if self.quote else text
        found: list[Call] = []
        place, end = 0, len(text.rstrip())
        while place < end:
            head = self._head.match(text, place)
            if head is None:
                return []
            try:
                value, after = DECODER.raw_decode(text, head.end())
            except (ValueError, RecursionError):
                return []
            if not isinstance(value, dict):
                return []
            found.append((head["name"], text[head.end() : after]))
            tail = self._tail.match(text, after)
            place = tail.end() if tail else after
        return found


@dataclass(frozen=True)
class MarkedCalls:
    """Reads a name and its arguments, each between marks of its own: as XML does, without its escapes.

    In order: `prefix` name `header`, for each argument `key` its name `between` its value `close`, `footer`.
    What an argument is to be says its schema; one that has none is JSON where it can be.
    """

    prefix: str
    header: str
    key: str
    between: str
    close: str
    footer: str

    @cached_property
    def _head(self) -> re.Pattern[str]:
        return re.compile(loose(self.prefix) + NAME + loose(self.header))

    @cached_property
    def _argument(self) -> re.Pattern[str]:
        # A line break beside a value is the format's, further white space the value's.
        before = r"\n?" if self.between.endswith("\n") else ""
        after = r"\n?" if self.close.startswith("\n") else ""
        between = loose(self.between).removesuffix(r"\s*")
        value = rf"{before}(?P<value>.*?){after}{re.escape(self.close.strip())}"
        return re.compile(rf"{loose(self.key)}(?P<key>[^<>\s]+?){between}{value}\s*", re.DOTALL)

    @cached_property
    def _tail(self) -> re.Pattern[str]:
        return re.compile(loose(self.footer))

    def __call__(self, text: str, schemas: Schemas) -> list[Call]:
        head = self._head.match(text)
        if head is None:
            return []
        schema = schemas.get(head["name"], {}).get("properties") or {}
        arguments: dict[str, Any] = {}
        place = head.end()
        while argument := self._argument.match(text, place):
            arguments[argument["key"]] = typed(argument["value"], schema.get(argument["key"]))
            place = argument.end()
        if not self._tail.fullmatch(text, place):
            return []
        try:
            return [(head["name"], as_json(arguments))]
        except ValueError:
            return []


def python_calls(text: str, _schemas: Schemas) -> list[Call]:
    """Read a list of calls as Python writes them, with arguments by name."""
    try:
        body = ast.parse(text.strip(), mode="eval").body
        calls = body.elts if isinstance(body, ast.List) else [body]
        return [python_call(call) for call in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def python_call(call: ast.expr) -> Call:
    """Return a call's name and arguments; raises ValueError where it is anything else than that."""
    if not isinstance(call, ast.Call) or call.args or any(each.arg is None for each in call.keywords):
        raise ValueError("not a call with named arguments")
    arguments = {str(each.arg): ast.literal_eval(Constants().visit(each.value)) for each in call.keywords}
    return ast.unparse(call.func), as_json(arguments)


class Constants(ast.NodeTransformer):
    """Takes JSON's constants for Python's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(PYTHON[node.id]) if node.id in PYTHON else node


def as_json(arguments: Mapping[str, Any]) -> str:
    """Return arguments as JSON text; raises ValueError for what JSON knows no word for."""
    return json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def loose(piece: str) -> str:
    """Return a pattern of the piece with any white space where it has some, and around it."""
    return r"\s*" + "".join(rf"{re.escape(word)}\s*" for word in piece.split())


def typed(text: str, schema: Any) -> Any:
    """Return an argument's value: its text where the schema says string, else what the text is as JSON."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return text
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError):
        return text


def json_of(text: str, quote: str) -> str:
    """Return as JSON what has strings between marks of their own, and keys between none."""
    parts = text.split(quote)
    return "".join(
        json.dumps(part, ensure_ascii=False)
        if number % 2
        else re.sub(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:", r'\1"\2":', part)
        for number, part in enumerate(parts)
    )


def call_of(text: str) -> Call | None:
    """Return name and arguments, as they were written, of a call in one of the shapes that models write."""
    if not text.startswith("{"):
        return None
    parts = members(text)
    name = json.loads(parts.get("name", "null"))
    arguments = parts.get("arguments", parts.get("parameters", "{}"))
    value = json.loads(arguments)
    if isinstance(value, str):
        arguments, value = value, json.loads(value)
    if not isinstance(name, str) or not isinstance(value, dict):
        return None
    return name, arguments


def members(text: str) -> dict[str, str]:
    """Return the members of a JSON object, each value as it is written."""
    found: dict[str, str] = {}
    place = past_space(text, 1)
    while text[place] != "}":
        key, place = DECODER.raw_decode(text, place)
        value = past_space(text, past_space(text, place) + 1)
        _, place = DECODER.raw_decode(text, value)
        found[key] = text[value:place]
        place = past_comma(text, place)
    return found


def elements(text: str) -> list[str]:
    """Return the elements of a JSON array, each as it is written."""
    found: list[str] = []
    place = past_space(text, 1)
    while text[place] != "]":
        _, end = DECODER.raw_decode(text, place)
        found.append(text[place:end])
        place = past_comma(text, end)
    return found


def past_space(text: str, place: int) -> int:
    while text[place] in " \t\n\r":
        place += 1
    return place


def past_comma(text: str, place: int) -> int:
    place = past_space(text, place)
    return past_space(text, place + 1) if text[place] == "," else place
