"""The requests that the server reads: OpenAI's chat shape, plus `steering`."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from steering.plan import MOST_TERMS
from steering.types import Positions, Tokens

# Tags of the unions below; with pydantic's own for a key, they stand in its error locations, never in ours.
TEXT, LIST, OBJECT, PLAIN, IMAGE = "<text>", "<list>", "<object>", "<plain>", "<image>"
TAGS = frozenset({TEXT, LIST, OBJECT, PLAIN, IMAGE, "[key]"})
KINDS: dict[type, str] = {str: TEXT, list: LIST, dict: OBJECT}

SEEDS = 2**63


def kind_of(value: Any) -> str | None:
    return KINDS.get(type(value))


def one_of_kinds(wanted: str) -> Discriminator:
    """Return a discriminator by JSON type, which says what was wanted."""
    return Discriminator(kind_of, custom_error_type="invalid_type", custom_error_message=f"must be {wanted}")


def only(*inert: Any) -> AfterValidator:
    """Accept a field that OpenAI documents and this server does not do only where it asks for nothing."""

    def refuse_others(value: Any) -> Any:
        if any(type(value) is type(allowed) and value == allowed for allowed in inert):
            return value
        raise PydanticCustomError("unsupported_parameter", "not supported by this server; leave it out")

    return AfterValidator(refuse_others)


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TermRequest(Wire):
    """One steering term as the caller writes it; null is the same as absent."""

    profile: str
    strength: float | None = None
    layers: Annotated[list[int], Field(min_length=1, max_length=1024, fail_fast=True)] | None = None
    positions: Positions | None = None
    tokens: Tokens | None = None


SteeringRequest = Annotated[
    Annotated[str, Tag(TEXT)]
    | Annotated[list[TermRequest], Field(max_length=MOST_TERMS), Tag(LIST)]
    | Annotated[TermRequest, Tag(OBJECT)],
    one_of_kinds("an object, a list of objects, or a string such as 'cheerful*0.8+formal'"),
]


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


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(None, False)] = None


StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = Annotated[
    Annotated[StopString, Tag(TEXT)] | Annotated[list[StopString], Field(max_length=4), Tag(LIST)],
    one_of_kinds("a string or a list of up to four strings"),
]
TokenText = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]


class ChatRequest(Wire):
    """The body of POST /v1/chat/completions; null is the same as absent."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    steering: SteeringRequest | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    max_tokens: Annotated[int, Field(ge=1, lt=SEEDS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=SEEDS)] | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=1024, fail_fast=True)] | None = None
    ignore_eos: bool | None = None

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=SEEDS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenText, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = None

    # Accepted without effect.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None

    # Documented by OpenAI and not done here.
    audio: Annotated[Any, only(None)] = None
    function_call: Annotated[Any, only(None, "none", "auto")] = None
    functions: Annotated[Any, only(None, [])] = None
    modalities: Annotated[Any, only(None, ["text"])] = None
    moderation: Annotated[Any, only(None)] = None
    prediction: Annotated[Any, only(None)] = None
    prompt_cache_options: Annotated[Any, only(None)] = None
    prompt_cache_retention: Annotated[Any, only(None)] = None
    reasoning_effort: Annotated[Any, only(None)] = None
    response_format: Annotated[Any, only(None, {"type": "text"})] = None
    tool_choice: Annotated[Any, only(None, "none", "auto")] = None
    tools: Annotated[Any, only(None, [])] = None
    verbosity: Annotated[Any, only(None)] = None
    web_search_options: Annotated[Any, only(None)] = None
