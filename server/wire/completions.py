"""The body of POST /v1/completions."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from server.wire.base import SEEDS, TEXT, TEXTS, TOKEN_LISTS, TOKENS, only
from server.wire.chat import StreamOptions
from server.wire.limits import User
from server.wire.sampling import SamplingFields
from server.wire.steering import SteeringRequest

KINDS: dict[type, str] = {str: TEXTS, int: TOKENS, list: TOKEN_LISTS}


def prompt_kind(value: Any) -> str | None:
    """Return which kind of prompt the value is, by its first item; one without any is no list of strings."""
    if isinstance(value, list):
        return KINDS.get(type(value[0])) if value else TEXTS
    return TEXT if isinstance(value, str) else None


# A server's own limit says how many it runs; more than these are not even read.
SEVERAL = Field(min_length=1, max_length=2048, fail_fast=True)
TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag(TEXT)]
    | Annotated[list[str], SEVERAL, Tag(TEXTS)]
    | Annotated[TokenIds, Tag(TOKENS)]
    | Annotated[list[TokenIds], SEVERAL, Tag(TOKEN_LISTS)],
    Discriminator(
        prompt_kind,
        custom_error_type="invalid_type",
        custom_error_message="must be a string, a list of strings, token ids, or lists of token ids",
    ),
]


class CompletionRequest(SamplingFields):
    """The body of POST /v1/completions; null is the same as absent.

    add_special_tokens: unless false, strings are read with the tokens that the tokenizer puts around text.
    """

    model: str
    prompt: Prompt
    add_special_tokens: bool | None = None
    steering: SteeringRequest | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None

    # Accepted without effect.
    user: User | None = None

    # Documented by OpenAI and not done here.
    suffix: Annotated[Any, only(None)] = None
