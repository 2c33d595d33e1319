"""The shapes of chat's answers, as /openapi.json documents them."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.answers import SteeredTerm, Usage

Finish = Literal["stop", "length", "tool_calls"]


class LikelyToken(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(LikelyToken):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(TypedDict):
    content: list[ChosenToken]
    refusal: None


class CalledFunction(TypedDict):
    """arguments: JSON as text, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(TypedDict):
    """content: null where the answer only calls tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    steering: NotRequired[list[SteeredTerm]]


class MoreOfFunction(TypedDict):
    name: NotRequired[str]
    arguments: str


class MoreOfCall(TypedDict):
    """A call, or more of its arguments; id, type and name come with its beginning."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: MoreOfFunction


class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    refusal: NotRequired[None]
    tool_calls: NotRequired[list[MoreOfCall]]


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(TypedDict):
    """One part of a stream; usage is null where a later part tells it; steering comes with an end."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]
    steering: NotRequired[list[SteeredTerm]]
