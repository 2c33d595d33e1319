"""The messages of a conversation: roles, and content as a string or as parts."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.wire.base import IMAGE, LIST, PLAIN, TEXT, Wire, one_of_kinds, only
from server.wire.structure import MOST_TOOLS, ToolCall

REFUSED_PARTS = {
    "input_audio": "this model takes no audio",
    "file": "this model takes no files",
    "refusal": "refusal parts are not supported; send the text",
}
UNKNOWN_PART = "not a kind of content part; send 'text' or 'image_url'"


class TextPart(Wire):
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def refuse_other_parts(cls, part: Any) -> Any:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise PydanticCustomError("unsupported_parameter", REFUSED_PARTS.get(kind, UNKNOWN_PART))
        return part


class ImageUrl(Wire):
    """detail is accepted; a model sees an image as its own processor makes it."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


def part_kind(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return IMAGE if kind == "image_url" else PLAIN


Part = Annotated[Annotated[TextPart, Tag(PLAIN)] | Annotated[ImagePart, Tag(IMAGE)], Discriminator(part_kind)]
Content = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[Part], Field(min_length=1, fail_fast=True), Tag(LIST)],
    one_of_kinds("a string or a list of parts"),
]


CallId = Annotated[str, Field(max_length=256)]


class Message(Wire):
    """A message; an answer of ours can be sent back as it came.

    content: may be null where an assistant called tools. tool_call_id: which call a tool's message answers.
    provider_specific_fields: what LiteLLM keeps of an answer and sends back with it; accepted.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_TOOLS)] | None = None
    tool_call_id: Annotated[CallId | None, Field(validate_default=True)] = None
    content: Annotated[Content | None, Field(validate_default=True)] = None
    name: str | None = None
    provider_specific_fields: dict[str, Any] | None = None
    refusal: Annotated[Any, only(None)] = None
    annotations: Annotated[Any, only(None, [])] = None
    audio: Annotated[Any, only(None)] = None
    function_call: Annotated[Any, only(None, because="not supported; send 'tool_calls'")] = None

    @model_validator(mode="before")
    @classmethod
    def refuse_what_is_amiss(cls, message: Any) -> Any:
        if isinstance(message, dict):
            reason = amiss(message)
            if reason:
                raise PydanticCustomError("unsupported_parameter", reason)
        return message

    @field_validator("content")
    @classmethod
    def need_content(cls, content: Any, others: ValidationInfo) -> Any:
        """Let content be left out where tools are called, and nowhere else."""
        if content is None and not others.data.get("tool_calls"):
            raise PydanticCustomError("missing", "required")
        return content

    @field_validator("tool_call_id")
    @classmethod
    def need_call(cls, call: str | None, others: ValidationInfo) -> str | None:
        if call is None and others.data.get("role") == "tool":
            raise PydanticCustomError("missing_parameter", "required: the id of the call that it answers")
        return call

    @property
    def text(self) -> str:
        if isinstance(self.content, str) or self.content is None:
            return self.content or ""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def parts(self) -> list[Part]:
        return self.content if isinstance(self.content, list) else [TextPart(type="text", text=self.text)]


def amiss(message: dict[str, Any]) -> str | None:
    """Return why the fields of a message do not go together, None where they do."""
    role = message.get("role")
    if role == "function":
        return "the role 'function' is not supported; send 'tool', with a tool_call_id"
    if message.get("tool_calls") and role != "assistant":
        return "tool_calls are an assistant's"
    if message.get("tool_call_id") is not None and role != "tool":
        return "tool_call_id is for the role 'tool'"
    return None
