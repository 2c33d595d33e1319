"""Hooks of schemathesis: bodies that are valid one field at a time are made to fit together.

What is wrong by itself stays as it is; the rest then reaches what lies behind the reading of a request.
"""

import re
from collections.abc import Callable
from typing import Any

import schemathesis

VOCABULARY = 258
MOST_TOKENS = 64
PROFILE, LAYERS = "cheerful", (1, 2, 3)
ROLES = {"tool_call_id": "tool", "tool_calls": "assistant"}


@schemathesis.hook
def before_call(_context: Any, case: schemathesis.Case, _arguments: Any) -> None:
    """Make the body what a client of the scripted model would mean by it."""
    if isinstance(case.body, dict):
        fitted = {key: FITTING[key](value) if key in FITTING else value for key, value in case.body.items()}
        case.body = together(fitted)


def together(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body with fields that go with each other."""
    if isinstance(body.get("messages"), list):
        body = {key: value for key, value in body.items() if key not in ("prompt", "add_special_tokens")}
        wanted = {"top_logprobs": "logprobs"}
    else:
        wanted = {}
    for field, other in {**wanted, "stream_options": "stream"}.items():
        if body.get(field) is not None and body.get(other) in (None, False):
            body = {**body, other: True}
    return body


def served(model: Any) -> Any:
    return "scripted" if isinstance(model, str) else model


def known(profile: Any) -> Any:
    return PROFILE if isinstance(profile, str) else profile


def steering(asked: Any) -> Any:
    if isinstance(asked, list):
        return [steering(term) for term in asked] if all(isinstance(term, dict) for term in asked) else asked
    if isinstance(asked, dict) and "profile" in asked:
        return {**asked, "profile": known(asked["profile"]), "layers": layers(asked.get("layers"))}
    return known(asked)


def layers(asked: Any) -> Any:
    known = isinstance(asked, list) and all(type(layer) is int for layer in asked)
    return [*{layer % len(LAYERS) + LAYERS[0] for layer in asked}] if known else asked


def messages(asked: Any) -> Any:
    return [fitting(message) for message in asked] if isinstance(asked, list) else asked


def fitting(message: Any) -> Any:
    """Return the message in the role that its fields are of."""
    if not isinstance(message, dict) or message.get("role") not in ("tool", "user", "assistant", "system"):
        return message
    roles = [role for field, role in ROLES.items() if message.get(field)]
    others = [field for field, role in ROLES.items() if roles[:1] != [role]]
    kept = {key: value for key, value in message.items() if key not in others or value is None}
    role = roles[0] if roles else ("user" if message["role"] in ("tool", "system") else message["role"])
    words = "hello" if kept.get("content") is None and role != "assistant" else kept.get("content")
    return {**kept, "role": role, "content": words}


def tokens(asked: Any) -> Any:
    """Return the token ids within the vocabulary, and some words for none; all else as it is."""
    if asked == "":
        return "hello"
    if isinstance(asked, list):
        return [tokens(each) for each in asked]
    return asked % VOCABULARY if type(asked) is int else asked


def bias(asked: Any) -> Any:
    if not isinstance(asked, dict) or not all(re.fullmatch(r"0|[1-9][0-9]{0,8}", key) for key in asked):
        return asked
    return {str(int(key) % VOCABULARY): value for key, value in asked.items()}


def few(asked: Any) -> Any:
    return max(1, min(asked, MOST_TOKENS)) if type(asked) is int and asked >= 0 else asked


FITTING: dict[str, Callable[[Any], Any]] = {
    "model": served,
    "steering": steering,
    "messages": messages,
    "input": messages,
    "prompt": tokens,
    "tokens": tokens,
    "stop_token_ids": tokens,
    "logit_bias": bias,
    "max_tokens": few,
    "max_completion_tokens": few,
    "max_output_tokens": few,
}
