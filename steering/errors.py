"""Every error that a caller can cause, as one tree.

SteeringError                    message, code, HTTP status, param
├── InvalidRequest               400  a field is wrong
│   ├── InvalidSteering          400  the steering option is wrong
│   ├── ProfileIncompatible      400  the profile was built for another model
│   └── ContextLengthExceeded    400  the prompt does not fit
├── NotFound                     404
│   ├── ModelNotFound            404
│   └── ProfileNotFound          404
├── ProfileCorrupt               500  a profile directory fails its checks
├── StoreNotWritable             500  profiles cannot be published there
├── ModelUnavailable             500  a model cannot be loaded
├── InvalidPairs                 400  the preference pairs cannot be used
├── JudgeUnavailable             502  an evaluation's judge does not reply
├── GenerationFailed             500  this request's own work failed
├── EngineOverloaded             503  the queue is full
└── EngineUnavailable            503  the engine is starting, draining or dead
"""

import re
from typing import ClassVar

COME_BACK = 5
# An address in memory, or an absolute path of two names and more; no URL.
PLACES = re.compile(r"0x[0-9a-fA-F]{4,}|(?<![\w.:/\\])(?:[A-Za-z]:)?(?:[/\\][\w.+~@-]+){2,}")
MOST_QUOTED = 200


def quotable(words: object) -> str:
    """Return what somebody else's error says, as callers may read it: one short line that names no place."""
    line = PLACES.sub("...", " ".join(str(words).split()))
    return line if len(line) <= MOST_QUOTED else f"{line[: MOST_QUOTED - 3]}..."


class SteeringError(Exception):
    """An error that is told to the caller: what is wrong, why, and the way out.

    param names the request field in question, in OpenAI's notation (`steering[0].profile`).
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(SteeringError):
    status = 400
    code = "invalid_value"


class InvalidSteering(InvalidRequest):
    code = "invalid_steering"


class ProfileIncompatible(InvalidRequest):
    code = "profile_incompatible"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class NotFound(SteeringError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class ProfileNotFound(NotFound):
    code = "profile_not_found"


class ProfileCorrupt(SteeringError):
    code = "profile_corrupt"


class StoreNotWritable(SteeringError):
    """No permission, no space, or something in the way."""

    code = "store_not_writable"


class ModelUnavailable(SteeringError):
    code = "model_unavailable"


class InvalidPairs(SteeringError):
    status = 400
    code = "invalid_pairs"


class JudgeUnavailable(SteeringError):
    status = 502
    code = "judge_unavailable"


class GenerationFailed(SteeringError):
    code = "generation_failed"


class EngineOverloaded(SteeringError):
    """retry_after is in seconds."""

    status = 503
    code = "engine_overloaded"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailable(SteeringError):
    """retry_after is in seconds; None: to try again is no use."""

    status = 503
    code = "engine_unavailable"

    def __init__(self, message: str, retry_after: int | None = COME_BACK) -> None:
        super().__init__(message)
        self.retry_after = retry_after
