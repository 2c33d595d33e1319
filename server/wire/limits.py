"""How long what a request carries along may be, and what it may tell a chat template."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from server.wire.base import SEEDS, only

MOST_MESSAGES = 2048
MOST_ARGUMENT = 4000

ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"]
# OpenAI's own limits; it documents none for `user`.
User = Annotated[str, Field(max_length=512)]
Identifier = Annotated[str, Field(max_length=64)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


def scalar(value: Any) -> Any:
    """Return a JSON scalar of bounded size; anything else is refused."""
    if isinstance(value, str) and len(value) <= MOST_ARGUMENT:
        return value
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < SEEDS):
        return value
    raise PydanticCustomError(
        "invalid_type",
        "must be a string of up to {most} characters, a number, true, false or null",
        {"most": MOST_ARGUMENT},
    )


# What asks for the answers that there are.
UNREASONED = only(None, "none", because="the models do not reason apart; send 'none', or leave it out")
UNVARIED = only(None, "medium", because="the models have no such setting; send 'medium', or leave it out")

TemplateArguments = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[Any, AfterValidator(scalar)]], Field(max_length=32)
]
