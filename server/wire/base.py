"""What all requests share: strict models, fields that say what was wanted, and tags that stay unseen."""

from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator
from pydantic_core import PydanticCustomError

# Tags of the unions below; with pydantic's own for a key, they stand in its error locations, never in ours.
TEXT, LIST, OBJECT, NUMBER = "<text>", "<list>", "<object>", "<number>"
PLAIN, IMAGE, SCHEMA = "<plain>", "<image>", "<schema>"
TEXTS, TOKENS, TOKEN_LISTS = "<texts>", "<tokens>", "<token lists>"
MESSAGE, CALL, RESULT = "<message>", "<call>", "<result>"
TAGS = frozenset(
    {TEXT, LIST, OBJECT, NUMBER, PLAIN, IMAGE, SCHEMA, TEXTS, TOKENS, TOKEN_LISTS}
    | {MESSAGE, CALL, RESULT, "[key]"}
)
KINDS: dict[type, str] = {str: TEXT, list: LIST, dict: OBJECT, int: NUMBER, float: NUMBER}

SEEDS = 2**63


def kind_of(value: Any) -> str | None:
    return KINDS.get(type(value))


def one_of_kinds(wanted: str) -> Discriminator:
    """Return a discriminator by JSON type, which says what was wanted."""
    return Discriminator(kind_of, custom_error_type="invalid_type", custom_error_message=f"must be {wanted}")


def only(*inert: Any, because: str = "not supported by this server; leave it out") -> AfterValidator:
    """Accept a field that OpenAI documents and this server does not do only where it asks for nothing."""

    def refuse_others(value: Any) -> Any:
        if any(type(value) is type(allowed) and value == allowed for allowed in inert):
            return value
        raise PydanticCustomError("unsupported_parameter", because)

    return AfterValidator(refuse_others)


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
