"""The body of POST /v1/responses."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.wire.base import OBJECT, SCHEMA, SEEDS, TEXT, Wire, one_of_kinds, only
from server.wire.limits import (
    UNREASONED,
    UNVARIED,
    Identifier,
    Metadata,
    ServiceTier,
    TemplateArguments,
    User,
)
from server.wire.response_input import Input
from server.wire.sampling import SamplingFields
from server.wire.steering import SteeringRequest
from server.wire.structure import (
    MOST_TOOLS,
    ChosenKind,
    Description,
    FunctionKind,
    JsonObjectFormat,
    JsonSchema,
    Name,
    Schema,
    TextFormat,
    format_kind,
)

LOGPROBS = "message.output_text.logprobs"
# The others ask for what no answer of this server holds.
Included = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
]
STATELESS = only(None, because="this server keeps no state; send the whole conversation as input")


class FlatSchemaFormat(JsonSchema):
    type: Literal["json_schema"]


Format = Annotated[
    Annotated[TextFormat, Tag(TEXT)]
    | Annotated[JsonObjectFormat, Tag(OBJECT)]
    | Annotated[FlatSchemaFormat, Tag(SCHEMA)],
    Discriminator(
        format_kind,
        custom_error_type="invalid_value",
        custom_error_message="must be an object whose type is 'text', 'json_object' or 'json_schema'",
    ),
]


class TextConfig(Wire):
    format: Format | None = None
    verbosity: Annotated[Any, UNVARIED] = None


class FlatTool(FunctionKind):
    """A function that the model may call; strict: accepted; a call that is forced is always kept to it."""

    name: Name
    description: Description | None = None
    parameters: Schema | None = None
    strict: bool | None = None

    # Documented by OpenAI and not done here.
    later: Annotated[Any, only(None, False), Field(alias="async", exclude=True)] = None
    allowed_callers: Annotated[Any, only(None, ["direct"]), Field(exclude=True)] = None
    defer_loading: Annotated[Any, only(None, False), Field(exclude=True)] = None
    output_schema: Annotated[Any, only(None), Field(exclude=True)] = None

    @model_validator(mode="before")
    @classmethod
    def refuse_nested_tools(cls, tool: Any) -> Any:
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
            told = "a tool of chat completions; here name and parameters stand beside type"
            raise PydanticCustomError("unsupported_parameter", told)
        return tool


class FlatNamedTool(ChosenKind):
    name: Name


FlatToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[FlatNamedTool, Tag(OBJECT)],
    one_of_kinds("'none', 'auto', 'required' or an object that names a function"),
]


class ResponseStreamOptions(Wire):
    include_obfuscation: Annotated[Any, only(None, False)] = None


class Reasoning(Wire):
    """What there is none of; what answers say of it can be sent back."""

    effort: Annotated[Any, UNREASONED] = None
    context: Annotated[Any, only(None)] = None
    generate_summary: Annotated[Any, only(None)] = None
    mode: Annotated[Any, only(None)] = None
    summary: Annotated[Any, only(None)] = None


class ResponseRequest(SamplingFields):
    """The body of POST /v1/responses; null is the same as absent."""

    model: str
    input: Input
    instructions: str | None = None
    steering: SteeringRequest | None = None

    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    include: Annotated[list[Included], Field(max_length=64)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=SEEDS)] | None = None

    text: TextConfig | None = None
    tools: Annotated[list[FlatTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None

    chat_template_kwargs: TemplateArguments | None = None

    # Accepted without effect; nothing is ever stored, and the answer says so.
    store: bool | None = None
    user: User | None = None
    metadata: Metadata | None = None
    service_tier: ServiceTier | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None
    truncation: Annotated[Any, only(None, "disabled")] = None

    # What would need state.
    previous_response_id: Annotated[Any, STATELESS] = None
    conversation: Annotated[Any, STATELESS] = None
    prompt: Annotated[Any, STATELESS] = None
    background: Annotated[
        Any, only(None, False, because="this server keeps no state; leave it out, and wait or stream")
    ] = None

    # Documented by OpenAI and not done here.
    reasoning: Reasoning | None = None
    max_tool_calls: Annotated[Any, only(None)] = None
    access_programs: Annotated[Any, only(None)] = None
    background_options: Annotated[Any, only(None)] = None
    context_management: Annotated[Any, only(None, [])] = None
    image: Annotated[Any, only(None)] = None
    moderation: Annotated[Any, only(None)] = None
    prompt_cache_options: Annotated[Any, only(None)] = None
    prompt_cache_retention: Annotated[Any, only(None)] = None
