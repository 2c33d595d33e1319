"""What all requests share: strict models, fields that say what was wanted, and tags that stay unseen."""

import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

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


@dataclass(frozen=True, slots=True)
class Only:
    """Accepts a field that OpenAI documents and this server does not do only where it asks for nothing."""

    inert: tuple[Any, ...]
    because: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.refuse_others, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        handler(schema)  # leaves the field out where it is to be left out
        return {"enum": list(self.inert)}

    def refuse_others(self, value: Any) -> Any:
        if any(type(value) is type(allowed) and value == allowed for allowed in self.inert):
            return value
        raise PydanticCustomError("unsupported_parameter", self.because)


def only(*inert: Any, because: str = "not supported by this server; leave it out") -> Only:
    return Only(inert, because)


@dataclass(frozen=True, slots=True)
class Written:
    """Accepts a text that the whole pattern matches; any other is told in words what it must be."""

    pattern: str
    told: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.refuse_others, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^{self.pattern}$"}

    def refuse_others(self, text: str) -> str:
        if re.fullmatch(self.pattern, text) is None:
            raise PydanticCustomError("invalid_value", "must be {told}", {"told": self.told})
        return text


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
