"""Everything that can go wrong, told as OpenAI's error object."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server.hints import elsewhere, unknown_field
from server.wire.base import TAGS
from steering.errors import (
    EngineOverloaded,
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
    InvalidSteering,
    ProfileCorrupt,
    SteeringError,
)

MAX_ERRORS = 10
MAX_LENGTH = 200
MAX_READ_ERRORS = 1000

CODES = {
    "extra_forbidden": "unknown_parameter",
    "unsupported_parameter": "unsupported_parameter",
    "missing": "missing_required_parameter",
    "missing_parameter": "missing_required_parameter",
    "json_invalid": "invalid_json",
    "invalid_type": "invalid_type",
}
LENGTH = re.compile(r"\w+ should have (at (?:most|least) \d+ items?) after validation, not (\d+|more)")
# OpenAI's clients obey it; of themselves they send again whatever a server failed on.
FOR_GOOD = {"x-should-retry": "false"}
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class BodyTooSlow(InvalidRequest):
    status = 408
    code = "request_body_timeout"


class RequestTimedOut(SteeringError):
    status = 504
    code = "request_timeout"


class WrongContentType(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class KeyRefused(InvalidRequest):
    status = 401
    code = "invalid_api_key"


class BodyRefused(InvalidRequest):
    """The body is no valid request; the cause says where, and `model` what was wanted."""

    def __init__(self, cause: ValidationError, model: type[BaseModel]) -> None:
        super().__init__("the body is not a valid request")
        self.cause = cause
        self.model = model


LIST_HINT = ' such as {"profile": "cheerful"}; a string of several is \'cheerful+formal\''
# Failures that the same request would meet again.
FINAL = (GenerationFailed, ProfileCorrupt, RequestTimedOut)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it goes out: OpenAI's object, an HTTP status, and headers."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return to_json({"error": told})

    def response(self) -> Response:
        return Response(self.body(), self.status, dict(self.headers), "application/json")


def problem_of(error: Exception) -> Problem:
    """Return what the caller is told; an error that is not meant for callers tells nothing of itself."""
    if isinstance(error, BodyRefused):
        return problem_of_body(error.cause, error.model)
    if isinstance(error, SteeringError):
        return Problem(error.status, error.message, error.code, clip(error.param), headers_of(error))
    if isinstance(error, HTTPException):
        code = HTTP_CODES.get(error.status_code, "invalid_request")
        phrase = f"{HTTPStatus(error.status_code).phrase}; see /openapi.json for what is served"
        return Problem(error.status_code, phrase, code, headers=error.headers or {})
    return Problem(500, "the server failed on this request; its log says why", "internal_error")


def headers_of(error: SteeringError) -> dict[str, str]:
    if isinstance(error, EngineOverloaded | EngineUnavailable):
        after = error.retry_after
        return FOR_GOOD if after is None else {"retry-after": str(after), "x-should-retry": "true"}
    if isinstance(error, KeyRefused):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, BodyTooLarge | BodyTooSlow):
        return {"connection": "close"}  # the rest of the body stays unread
    return FOR_GOOD if isinstance(error, FINAL) else {}


def problem_of_body(error: ValidationError, model: type[BaseModel]) -> Problem:
    """Return a validation answer: the first error's path and code, ten errors of 200 characters at most."""
    if error.error_count() > MAX_READ_ERRORS:  # reading them all out would hold up everybody
        return Problem(400, f"the body has {error.error_count()} mistakes", "invalid_value")
    details = error.errors(include_url=False, include_input=False, include_context=False)
    first = details[0]
    code = CODES.get(first["type"], "invalid_type" if first["type"].endswith("_type") else "invalid_value")
    if first["loc"][:1] == ("steering",):
        code = InvalidSteering.code
    if first["type"] == "extra_forbidden" and elsewhere(first["loc"], model):
        code = CODES["unsupported_parameter"]
    message = "; ".join(described(details, model))
    return Problem(400, message, code, clip(param_of(first["loc"]) or None))


def described(details: list[ErrorDetails], model: type[BaseModel]) -> Iterator[str]:
    for detail in details[:MAX_ERRORS]:
        place = param_of(detail["loc"])
        told = message_of(detail, model)
        yield clip(f"{place}: {told}" if place else told)
    if len(details) > MAX_ERRORS:
        yield f"and {len(details) - MAX_ERRORS} more"


def message_of(detail: ErrorDetails, model: type[BaseModel]) -> str:
    if detail["type"] == "extra_forbidden":
        return unknown_field(detail["loc"], model)
    if detail["type"] == "missing":
        return "required"
    if detail["type"] == "model_type":
        return f"must be an object{LIST_HINT if detail['loc'][:1] == ('steering',) else ''}"
    return counted(detail["msg"])


def counted(said: str) -> str:
    """Return what is said of a list's length in fewer words; anything else as it is."""
    found = LENGTH.fullmatch(said)
    return f"must be {found[1]}, there are {found[2]}" if found else said


def param_of(location: tuple[int | str, ...]) -> str:
    """Return the path in OpenAI's notation: messages[0].content."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in TAGS:
            path += f".{part}" if path else part
    return path


def clip(text: Any) -> Any:
    """Return the text, no longer than an answer may quote; None stays None."""
    return text if text is None or len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 1]}…"
