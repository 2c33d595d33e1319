"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any

from pydantic import Field

from server.wire.base import SEEDS, Wire, only
from server.wire.messages import Message
from server.wire.sampling import SamplingFields
from server.wire.steering import SteeringRequest


class StreamOptions(Wire):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[Any, only(None, False)] = None


class ChatRequest(SamplingFields):
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
