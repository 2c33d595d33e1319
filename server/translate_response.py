"""From a response request to the chat request that it amounts to, and to its run."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from server.pairing import refuse_unpaired_items
from server.run import Run
from server.translate import refuse_stream_options
from server.wire.chat import ChatRequest
from server.wire.messages import ImagePart, ImageUrl, Message, Part, TextPart
from server.wire.response_input import CallItem, Content, MessageItem
from server.wire.response_input import ImagePart as InputImage
from server.wire.responses import LOGPROBS, FlatNamedTool, FlatSchemaFormat, FlatTool, ResponseRequest
from server.wire.sampling import SamplingFields
from server.wire.steering import SteeringRequest, TermRequest
from server.wire.structure import (
    CalledFunction,
    Function,
    JsonSchema,
    JsonSchemaFormat,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
)
from steering.errors import InvalidRequest, InvalidSteering, SteeringError

ALIKE = (
    *SamplingFields.model_fields,
    *("model", "steering", "stream", "parallel_tool_calls", "chat_template_kwargs"),
)
# Where chat says what a response request says elsewhere.
PLACES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "tool_choice.function": "tool_choice",
}
WORDS = {**PLACES, "these messages": "this input", "image_url parts": "input_image parts"}
SAID = re.compile(r"\b(these messages|messages|max_completion_tokens|response_format|image_url parts)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRun(Run):
    """The run of a response request, which its answer repeats."""

    asked: ResponseRequest


def response_run(run: Run, asked: ResponseRequest) -> ResponseRun:
    return ResponseRun(**{each.name: getattr(run, each.name) for each in fields(Run)}, asked=asked)


@dataclass(frozen=True, slots=True)
class Terms:
    """How the request names what chat names otherwise; places: chat's -> the request's."""

    places: Mapping[str, str]

    def of(self, place: str) -> str:
        """Return the request's name of a place in the chat request."""
        known = place
        while known and known not in self.places:
            known = known[: max(known.rfind("."), known.rfind("["), 0)]
        return self.places[known] + place[len(known) :] if known else place

    @contextmanager
    def spoken(self) -> Iterator[None]:
        """Let errors name places as the request does."""
        try:
            yield
        except SteeringError as error:
            if error.param is not None and self.of(error.param) != error.param:
                error.param = self.of(error.param)
                error.message = SAID.sub(lambda word: WORDS[word[0]], error.message)
            raise


@dataclass(slots=True)
class Conversation:
    """The messages that items amount to, and where in the request they stand."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)

    def say(self, role: str, content: Content, place: str, **others: Any) -> None:
        """Add a message whose content stands at the place; words after a call are of the call's message."""
        last = self.messages[-1] if self.messages else {}
        if role == "assistant" and last.get("tool_calls") and wordy(last["content"]) and wordy(content):
            last["content"] = words(last["content"]) + words(content)
            return
        here = f"messages[{len(self.messages)}]"
        self.places[here] = self.places[f"{here}.content"] = place
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, InputImage):
                self.places[f"{here}.content[{number}].image_url.url"] = f"{place}[{number}].image_url"
        self.messages.append({"role": role, "content": content, **others})

    def call(self, item: CallItem, place: str) -> None:
        """Add a call to the assistant's message before it, or to one of its own."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
        calls = self.messages[-1].setdefault("tool_calls", [])
        here = f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}]"
        self.places[f"{here}.function"] = place
        function = CalledFunction.model_construct(name=item.name, arguments=item.arguments)
        calls.append(ToolCall.model_construct(id=item.call_id, type="function", function=function))

    def told(self) -> list[Message]:
        return [
            Message.model_construct(**{**message, "content": content_of(message["content"])})
            for message in self.messages
        ]


def wordy(content: Content | None) -> bool:
    return not isinstance(content, list) or not any(isinstance(part, InputImage) for part in content)


def words(content: Content | None) -> str:
    if isinstance(content, list):
        return "\n".join(part.text for part in content if not isinstance(part, InputImage))
    return content or ""


def content_of(content: Content | None) -> str | list[Part] | None:
    """Return the content as a chat message has it."""
    if not isinstance(content, list):
        return content
    return [
        ImagePart.model_construct(
            type="image_url", image_url=ImageUrl.model_construct(url=part.image_url, detail=part.detail)
        )
        if isinstance(part, InputImage)
        else TextPart.model_construct(type="text", text=part.text)
        for part in content
    ]


def conversation_of(request: ResponseRequest) -> Conversation:
    conversation = Conversation()
    if request.instructions is not None:
        conversation.say("system", request.instructions, "instructions")
    if isinstance(request.input, str):
        conversation.say("user", request.input, "input")
        return conversation
    for number, item in enumerate(request.input):
        place = f"input[{number}]"
        if isinstance(item, MessageItem):
            conversation.say(item.role, item.content, f"{place}.content")
        elif isinstance(item, CallItem):
            conversation.call(item, place)
        else:
            conversation.say("tool", item.output, f"{place}.output", tool_call_id=item.call_id)
    return conversation


def as_chat(request: ResponseRequest) -> tuple[ChatRequest, Terms]:
    """Return the chat request of the same meaning, made of what is valid already, and the terms of errors."""
    check_combinations(request)
    conversation = conversation_of(request)
    wanted = wants_logprobs(request)
    asked = ChatRequest.model_construct(
        **{name: getattr(request, name) for name in ALIKE},
        messages=conversation.told(),
        max_completion_tokens=request.max_output_tokens,
        logprobs=wanted,
        top_logprobs=request.top_logprobs if wanted else None,
        response_format=format_of(request),
        tools=[tool_of(tool) for tool in request.tools or ()],
        tool_choice=choice_of(request),
    )
    tools = {f"tools[{number}].function": f"tools[{number}]" for number in range(len(request.tools or ()))}
    return asked, Terms({**PLACES, **tools, **conversation.places})


def check_combinations(request: ResponseRequest) -> None:
    refuse_stream_options(request.stream_options, request.stream)
    refuse_sweeps(request.steering)
    if not isinstance(request.input, str):
        refuse_unpaired_items(request.input)
    if request.top_logprobs and not wants_logprobs(request):
        raise InvalidRequest(f"top_logprobs needs include: ['{LOGPROBS}']", "top_logprobs")


def wants_logprobs(request: ResponseRequest) -> bool:
    return LOGPROBS in (request.include or ())


def refuse_sweeps(steering: SteeringRequest | None) -> None:
    alone = isinstance(steering, TermRequest)
    terms = (
        [steering] if isinstance(steering, TermRequest) else steering if isinstance(steering, list) else []
    )
    for number, term in enumerate(terms):
        if isinstance(term.strength, list):
            raise InvalidSteering(
                "a response is one answer, so a strength is one number; /v1/chat/completions takes a list",
                f"{'steering' if alone else f'steering[{number}]'}.strength",
            )


def tool_of(tool: FlatTool) -> Tool:
    function = Function.model_construct(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool.model_construct(type="function", function=function)


def choice_of(request: ResponseRequest) -> ToolChoice | None:
    choice = request.tool_choice
    if not isinstance(choice, FlatNamedTool):
        return choice
    named = NamedFunction.model_construct(name=choice.name)
    return NamedTool.model_construct(type="function", function=named)


def format_of(request: ResponseRequest) -> ResponseFormat | None:
    asked = request.text.format if request.text else None
    if not isinstance(asked, FlatSchemaFormat):
        return asked
    schema = JsonSchema.model_construct(
        name=asked.name, description=asked.description, schema_=asked.schema_, strict=asked.strict
    )
    return JsonSchemaFormat.model_construct(type="json_schema", json_schema=schema)
