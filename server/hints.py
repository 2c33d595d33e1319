"""What a field that a body cannot have was meant to be."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from server.wire.base import TAGS, Only
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest
from server.wire.responses import LOGPROBS, ResponseRequest
from server.wire.tokens import DetokenizeRequest, TokenizeRequest

Location = tuple[int | str, ...]
LONGEST = 200
# How alike a name must be to be meant: 'min_tokens' is no 'max_tokens'.
ALIKE = 0.82

# What callers write whose other client, or whose reading of an answer, says it so.
ANYWHERE = {
    "extra_body": "; it is an argument of OpenAI's Python client: send what it holds beside 'model'",
    "profile": '; write "steering": {"profile": ...}',
    "strength": '; write "steering": {"profile": ..., "strength": ...}',
    "version": "; a version is part of the profile: 'cheerful@1'",
}
NO_STATE = "nothing is stored, so send the whole conversation"
IN_CHAT = "/v1/chat/completions has it"
IN_COMPLETIONS = "/v1/completions has it"
# Fields of one of OpenAI's APIs in a body of another, and what to do instead.
ELSEWHERE: Mapping[type[BaseModel], Mapping[str, str]] = {
    ChatRequest: {
        "input": "send 'messages'",
        "prompt": f"send 'messages'; {IN_COMPLETIONS}",
        "instructions": "send a message of the role 'system'",
        "max_output_tokens": "send 'max_completion_tokens'",
        "text": "send 'response_format'",
        "include": "send 'logprobs': true",
        "reasoning": "leave it out, or send 'reasoning_effort': 'none'",
        "truncation": "leave it out",
        "background": "leave it out, and wait or stream",
        "max_tool_calls": "leave it out",
        "previous_response_id": NO_STATE,
        "conversation": NO_STATE,
        **dict.fromkeys(("best_of", "echo", "suffix", "add_special_tokens"), IN_COMPLETIONS),
    },
    CompletionRequest: {
        "messages": f"send 'prompt'; {IN_CHAT}",
        "input": "send 'prompt'",
        "instructions": "send it in 'prompt'",
        "max_completion_tokens": "send 'max_tokens'",
        "max_output_tokens": "send 'max_tokens'",
        "top_logprobs": "send 'logprobs', a number",
        **dict.fromkeys(("response_format", "tools", "tool_choice"), IN_CHAT),
        **dict.fromkeys(("add_generation_prompt", "continue_final_message"), IN_CHAT),
    },
    ResponseRequest: {
        "messages": "send 'input'",
        "response_format": "send 'text': {'format': ...}",
        "max_tokens": "send 'max_output_tokens'",
        "max_completion_tokens": "send 'max_output_tokens'",
        "logprobs": f"send 'include': ['{LOGPROBS}']",
        "functions": "send 'tools'",
        "function_call": "send 'tool_choice'",
        "n": f"a response is one answer; {IN_CHAT}",
        "reasoning_effort": "leave it out, or send 'reasoning': {'effort': 'none'}",
        "verbosity": "leave it out, or send 'text': {'verbosity': 'medium'}",
        "modalities": "leave it out: answers are text",
        "audio": "leave it out: answers are text",
        "prediction": "leave it out",
        "web_search_options": "leave it out",
        "chat_template": "leave it out: the template is the model's",
        **dict.fromkeys(("add_generation_prompt", "continue_final_message"), IN_CHAT),
        **dict.fromkeys(("best_of", "echo", "suffix", "add_special_tokens"), IN_COMPLETIONS),
    },
    TokenizeRequest: {
        "input": "send 'prompt' or 'messages'",
        "text": "send 'prompt'",
        "instructions": "send 'messages'",
    },
    DetokenizeRequest: {"prompt": "send 'tokens'"},
}


def unknown_field(location: Location, model: type[BaseModel]) -> str:
    """Return what is said of a field that the model does not have, and what was meant where that is clear."""
    instead = elsewhere(location, model)
    if instead is not None:
        return f"not a field here; {instead}"
    name = str(location[-1])
    return f"unknown field{ANYWHERE.get(name) or nearest(name, known_beside(location, model))}"


def elsewhere(location: Location, model: type[BaseModel]) -> str | None:
    """Return what to do instead where the field is one of another API, None where it is none."""
    return ELSEWHERE.get(model, {}).get(str(location[0])) if len(location) == 1 else None


def known_beside(location: Location, model: type[BaseModel]) -> list[str]:
    """Return the fields that may be sent in the object at the location, whichever kind of several it is."""
    kinds = [model]
    for part in location[:-1]:
        if isinstance(part, str) and part not in TAGS:
            fields = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
            kinds = [found for field in fields for found in models_in(field.annotation)]
    return [
        field.alias or name
        for kind in kinds
        for name, field in kind.model_fields.items()
        if not refused(field)
    ]


def refused(field: FieldInfo) -> bool:
    return any(isinstance(each, Only) for each in field.metadata)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from models_in(each)


def nearest(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name[:LONGEST], known, n=1, cutoff=ALIKE)
    return f"; did you mean '{found[0]}'?" if found else ""
