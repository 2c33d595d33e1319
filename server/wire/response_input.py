"""The items of a response's input: messages, calls and their results; an answer's items can be sent back."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from server.wire.base import (
    CALL,
    IMAGE,
    LIST,
    MESSAGE,
    PLAIN,
    RESULT,
    TEXT,
    Wire,
    one_of_kinds,
    only,
)
from server.wire.limits import MOST_MESSAGES
from server.wire.messages import REFUSED_PARTS
from server.wire.structure import Name

MOST_TOLD = 100_000  # of what an answer's words came with, at most something for each token
TEXT_PARTS = ("input_text", "output_text")
REFUSED = {**REFUSED_PARTS, "input_file": REFUSED_PARTS["file"]}
UNKNOWN_PART = "not a kind of content part; send 'input_text', 'output_text' or 'input_image'"
REFUSED_ITEMS = {
    "item_reference": "this server keeps no state; send the item itself",
    "reasoning": "this server takes no reasoning items; leave it out",
}
UNKNOWN_ITEM = "not a kind of input item; send 'message', 'function_call' or 'function_call_output'"

Id = Annotated[str, Field(max_length=256)]
CallId = Annotated[str, Field(min_length=1, max_length=256)]
Status = Literal["in_progress", "completed", "incomplete"]


def type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


class TextPart(Wire):
    """Words; what an answer's words came with is tolerated."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=MOST_TOLD, fail_fast=True)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=MOST_TOLD, fail_fast=True)] | None = None
    prompt_cache_breakpoint: Annotated[Any, only(None)] = None

    @model_validator(mode="before")
    @classmethod
    def refuse_other_parts(cls, part: Any) -> Any:
        kind = type_of(part)
        if isinstance(kind, str) and kind not in TEXT_PARTS:
            raise PydanticCustomError("unsupported_parameter", REFUSED.get(kind, UNKNOWN_PART))
        return part


class ImagePart(Wire):
    """detail is accepted; a model sees an image as its own processor makes it."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: Annotated[Any, only(None, because="this server keeps no files; send an image_url")] = None
    prompt_cache_breakpoint: Annotated[Any, only(None)] = None


def part_kind(part: Any) -> str:
    return IMAGE if type_of(part) == "input_image" else PLAIN


Part = Annotated[Annotated[TextPart, Tag(PLAIN)] | Annotated[ImagePart, Tag(IMAGE)], Discriminator(part_kind)]
Content = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[Part], Field(min_length=1, fail_fast=True), Tag(LIST)],
    one_of_kinds("a string or a list of parts"),
]


class MessageItem(Wire):
    """A message; id, status and phase are what an answer's messages come with."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: Id | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    @model_validator(mode="before")
    @classmethod
    def refuse_other_items(cls, item: Any) -> Any:
        kind = type_of(item)
        if isinstance(kind, str) and kind != "message":
            raise PydanticCustomError("unsupported_parameter", REFUSED_ITEMS.get(kind, UNKNOWN_ITEM))
        return item

    @field_validator("role", mode="before")
    @classmethod
    def refuse_results(cls, role: Any) -> Any:
        if role in ("tool", "function"):
            told = "a call's result is an item of type 'function_call_output', with the call_id"
            raise PydanticCustomError("unsupported_parameter", told)
        return role


class CallItem(Wire):
    """A call that an earlier answer made; arguments: JSON as text, as a model wrote it.

    async_: what OpenAI's Python client makes of `async` where its objects are dumped as they are.
    """

    type: Literal["function_call"]
    call_id: CallId
    name: Name
    arguments: str
    id: Id | None = None
    status: Status | None = None
    namespace: Annotated[Any, only(None)] = None
    caller: Annotated[Any, only(None)] = None
    later: Annotated[Any, only(None, False), Field(alias="async")] = None
    async_: Annotated[SkipJsonSchema[Any], only(None, False)] = None


class ResultItem(Wire):
    """What a call came to."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Content
    id: Id | None = None
    status: Status | None = None
    name: Annotated[Any, only(None)] = None
    namespace: Annotated[Any, only(None)] = None
    caller: Annotated[Any, only(None)] = None


ITEMS = {"function_call": CALL, "function_call_output": RESULT}


def item_kind(item: Any) -> str:
    kind = type_of(item)
    return ITEMS.get(kind, MESSAGE) if isinstance(kind, str) else MESSAGE


Item = Annotated[
    Annotated[MessageItem, Tag(MESSAGE)]
    | Annotated[CallItem, Tag(CALL)]
    | Annotated[ResultItem, Tag(RESULT)],
    Discriminator(item_kind),
]
Input = Annotated[
    Annotated[str, Field(min_length=1), Tag(TEXT)]
    | Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True), Tag(LIST)],
    one_of_kinds("a string or a list of items"),
]
