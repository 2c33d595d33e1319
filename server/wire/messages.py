"""The messages of a conversation: roles, and content as a string or as parts."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.wire.base import IMAGE, LIST, PLAIN, TEXT, Wire, one_of_kinds, only

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


class Message(Wire):
    """A message; an answer of ours can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    refusal: Annotated[Any, only(None)] = None
    annotations: Annotated[Any, only(None, [])] = None
    audio: Annotated[Any, only(None)] = None
    function_call: Annotated[Any, only(None)] = None
    tool_calls: Annotated[Any, only(None, [])] = None

    @model_validator(mode="before")
    @classmethod
    def refuse_tool_results(cls, message: Any) -> Any:
        if isinstance(message, dict) and message.get("role") in ("tool", "function"):
            raise PydanticCustomError(
                "unsupported_parameter",
                "the role '{role}' is not supported: this server calls no tools",
                {"role": message["role"]},
            )
        return message

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def parts(self) -> list[Part]:
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content
