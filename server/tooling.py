"""Tools in a conversation: how the model is told of them, what a forced call must match, who reads calls."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.call_formats import CallFormat
from server.call_learning import NAME, PROBE, REFUSALS, learned
from server.tool_calls import (
    BARE,
    CLOSE,
    OPEN,
    TAGGED,
    Calls,
    NamedReader,
    Reader,
    RequiredReader,
    reader_of,
)
from server.wire.chat import ChatRequest
from server.wire.structure import Function, NamedTool
from steering.errors import InvalidRequest
from steering.picturing import Conversation, Pictured, Rendering, applied, template_of
from vector_store.names import quoted

SHOWN = 8
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
# In a JSON schema: what holds values, not schemas, and what holds schemas by names.
VALUES = frozenset({"const", "enum", "default", "examples"})
PARTS = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "unevaluatedProperties"})
INSTRUCTIONS = f"""You can call these functions, each described by a JSON schema:
{{functions}}
To call one, write a line {OPEN}{{{{"name": "...", "arguments": {{{{...}}}}}}}}{CLOSE} and nothing after it. \
The result comes back between <tool_response> and </tool_response>. Call a function only where it helps."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model's chat template speaks of tools.

    native: it renders them; if not, they are told in a system message. calls: how the model writes them.
    spelled: the special tokens, by id, that mark its calls; they have a text in answers with tools.
    from_text: the template takes the arguments of calls as JSON text.
    """

    native: bool
    calls: CallFormat
    spelled: Mapping[int, str] = field(default_factory=dict)
    from_text: bool = False


FOREIGN = ToolFormat(native=False, calls=TAGGED)


def tool_format(tokenizer: Any, pictured: Pictured | None) -> ToolFormat:
    """Return the format of the template, found out by rendering tools and calls with it."""
    template = template_of(tokenizer, pictured)

    def render(conversation: Conversation) -> str:
        if pictured and pictured.takes_parts:
            conversation = [in_parts(message) for message in conversation]
        return applied(conversation, tokenizer, template or None, Rendering(opens=False, tools=[PROBE]))

    try:
        native = NAME in render([{"role": "user", "content": "x"}])
    except REFUSALS:
        native = False
    if not native:
        return FOREIGN
    found = learned(render)
    if found is None:
        return ToolFormat(True, TAGGED if OPEN in template else BARE)
    special = {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special and any(added.content in text for text in found.texts)
    }
    return ToolFormat(True, found.format, special, found.from_text)


def in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    text = message["content"]
    return {**message, "content": [{"type": "text", "text": text}] if text else []}


@dataclass(frozen=True, slots=True)
class Tooling:
    """The functions that a request offers, and which of them it wants called.

    choice: auto, required, or the name of one function.
    """

    functions: tuple[Function, ...]
    choice: str
    named: bool
    parallel: bool
    format: ToolFormat

    @property
    def schema(self) -> dict[str, Any] | None:
        """Return what a forced call must match: a named function's arguments, else name and arguments."""
        if self.named:
            chosen = next(function for function in self.functions if function.name == self.choice)
            return parameters_of(chosen)
        if self.choice == "required":
            return {"anyOf": [call_schema(number, each) for number, each in enumerate(self.functions)]}
        return None

    @property
    def forced(self) -> dict[str, dict[str, Any]]:
        """Return the schemas of which a forced call must match one, by their places in the request."""
        return {
            f"tools[{number}].function.parameters": parameters_of(function)
            for number, function in enumerate(self.functions)
            if self.choice in ("required", function.name)
        }

    @property
    def stops(self) -> tuple[str, ...]:
        """Return what ends an answer early: the first call's end, where one call is the most."""
        end = self.format.calls.end
        return (end,) if self.choice == "auto" and end and not self.parallel else ()

    @property
    def spelled(self) -> Mapping[int, str]:
        """Return the special tokens that have a text in the answer: those that mark calls."""
        return self.format.spelled if self.choice == "auto" else {}

    @property
    def told(self) -> list[dict[str, Any]]:
        """Return the functions as templates read them."""
        return [
            {"type": "function", "function": each.model_dump(exclude_none=True)} for each in self.functions
        ]

    def reader(self) -> Reader:
        if self.named:
            return NamedReader(self.choice)
        if self.choice == "required":
            return RequiredReader()
        schemas = {function.name: function.parameters or {} for function in self.functions}
        return reader_of(Calls(self.format.calls, schemas, self.parallel))


def in_words(conversation: Sequence[dict[str, Any]], tooling: Tooling | None) -> list[dict[str, Any]]:
    """Return the conversation with its tools, calls and results in words, for templates that know none."""
    messages = [call_in_words(message) for message in conversation]
    if tooling is None:
        return messages
    functions = "\n".join(json.dumps(each["function"]) for each in tooling.told)
    instructions = INSTRUCTIONS.format(functions=functions)
    if messages[0]["role"] == "system":
        return [edited(messages[0], lambda text: f"{text}\n\n{instructions}"), *messages[1:]]
    return [{"role": "system", "content": like(messages[0], instructions)}, *messages]


def with_arguments_as_text(conversation: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the conversation with the arguments of its calls as JSON text."""

    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": arguments}}

    return [
        {**message, "tool_calls": [as_text(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in conversation
    ]


def tooling_of(request: ChatRequest, format: ToolFormat) -> Tooling | None:  # noqa: A002
    """Return the request's tooling, None where it offers no tools or wants none called."""
    functions = tuple(tool.function for tool in request.tools or ())
    choice = request.tool_choice
    if not functions:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice asks for a call, but there are no tools", "tool_choice")
        return None
    refuse_bad(functions)
    if choice == "none":
        return None
    named = isinstance(choice, NamedTool)
    wanted = choice.function.name if isinstance(choice, NamedTool) else choice or "auto"
    names = [function.name for function in functions]
    if named and wanted not in names:
        raise InvalidRequest(
            f"there is no tool named '{wanted}'; {offered(names)}", "tool_choice.function.name"
        )
    return Tooling(functions, wanted, named, request.parallel_tool_calls is not False, format)


def offered(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"the tools are {', '.join(names[:SHOWN])}{more}"


def refuse_bad(functions: Sequence[Function]) -> None:
    """Refuse functions of one name, and arguments that are no object."""
    seen: set[str] = set()
    for number, function in enumerate(functions):
        kind = (function.parameters or {}).get("type", "object")
        if kind != "object":
            raise InvalidRequest(
                f"a function's arguments are an object; the schema's type is {quoted(str(kind))}",
                f"tools[{number}].function.parameters",
            )
        if function.name in seen:
            raise InvalidRequest(f"two tools are named '{function.name}'", f"tools[{number}].function.name")
        seen.add(function.name)


def parameters_of(function: Function) -> dict[str, Any]:
    """Return the schema of a function's arguments: an object, with no other properties than it names.

    Where it says so itself, or combines schemas, what it says holds.
    """
    if function.parameters is None:
        return NO_PARAMETERS
    closed = "properties" in function.parameters and COMBINING.isdisjoint(function.parameters)
    return {
        "type": "object",
        **({"additionalProperties": False} if closed else {}),
        **function.parameters,
    }


def call_schema(number: int, function: Function) -> dict[str, Any]:
    """Return the schema of a call by name, as the `number`th of several; references stay within it."""
    place = f"#/anyOf/{number}/properties/arguments"
    # An address of its own would make references count from there again.
    arguments = {key: value for key, value in parameters_of(function).items() if key != "$id"}
    return {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            "arguments": moved(arguments, place),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def moved(schema: Any, place: str, named: bool = False) -> Any:
    """Return a schema whose references count from where it stands now; named: its keys are names of parts."""
    if isinstance(schema, list):
        return [moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: moved_member(key, value, place, named) for key, value in schema.items()}


def moved_member(key: str, value: Any, place: str, named: bool) -> Any:
    if named:
        return moved(value, place)
    if key in VALUES:
        return value
    if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
        return place + value[1:]
    return moved(value, place, named=key in PARTS)


def call_in_words(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose calls, or whose result of one, stand in its text."""
    calls = [f"{OPEN}{json.dumps(call['function'])}{CLOSE}" for call in message.get("tool_calls", ())]
    plain = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
    if message["role"] == "tool":
        return edited({**plain, "role": "user"}, lambda text: f"<tool_response>\n{text}\n</tool_response>")
    return edited(plain, lambda text: "\n".join([*([text] if text else []), *calls])) if calls else plain


def edited(message: dict[str, Any], edit: Callable[[str], str]) -> dict[str, Any]:
    """Return the message with its text edited; of several parts, the last text."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": edit(content)}
    texts = [number for number, part in enumerate(content) if part["type"] == "text"]
    last = texts[-1] if texts else len(content)
    text = content[last]["text"] if texts else ""
    return {
        **message,
        "content": [*content[:last], {"type": "text", "text": edit(text)}, *content[last + 1 :]],
    }


def like(message: dict[str, Any], text: str) -> Any:
    return text if isinstance(message["content"], str) else [{"type": "text", "text": text}]
