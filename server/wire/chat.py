"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any

from pydantic import Field

from server.wire.base import SEEDS, Wire, only
from server.wire.limits import (
    MOST_MESSAGES,
    UNREASONED,
    UNVARIED,
    Identifier,
    Metadata,
    ServiceTier,
    TemplateArguments,
    User,
)
from server.wire.messages import Message
from server.wire.sampling import SamplingFields
from server.wire.steering import SteeringRequest
from server.wire.structure import MOST_TOOLS, ResponseFormat, Tool, ToolChoice


class StreamOptions(Wire):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[Any, only(None, False)] = None


class ChatRequest(SamplingFields):
    """The body of POST /v1/chat/completions; null is the same as absent."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    steering: SteeringRequest | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    max_tokens: Annotated[int, Field(ge=1, lt=SEEDS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=SEEDS)] | None = None

    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    chat_template_kwargs: TemplateArguments | None = None

    # Accepted without effect.
    user: User | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: ServiceTier | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None

    # Known from OpenAI or from other servers, and not done here.
    chat_template: Annotated[Any, only(None)] = None
    audio: Annotated[Any, only(None)] = None
    function_call: Annotated[Any, only(None, "none", "auto", because="not supported; send 'tool_choice'")] = (
        None
    )
    functions: Annotated[Any, only(None, [], because="not supported; send 'tools'")] = None
    modalities: Annotated[Any, only(None, ["text"])] = None
    moderation: Annotated[Any, only(None)] = None
    prediction: Annotated[Any, only(None)] = None
    prompt_cache_options: Annotated[Any, only(None)] = None
    prompt_cache_retention: Annotated[Any, only(None)] = None
    reasoning_effort: Annotated[Any, UNREASONED] = None
    verbosity: Annotated[Any, UNVARIED] = None
    web_search_options: Annotated[Any, only(None)] = None
