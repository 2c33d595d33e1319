"""What an answer's shape may be asked to be: a response format, tools, and the choice among them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.wire.base import OBJECT, SCHEMA, TEXT, Wire, Written, one_of_kinds

MOST_TOOLS = 128
Name = Annotated[
    str, Written("[A-Za-z0-9_-]{1,64}", "1 to 64 of the letters a to z and A to Z, 0 to 9, _ and -")
]
Description = Annotated[str, Field(max_length=10_000)]
Schema = dict[str, Any]


class FunctionKind(Wire):
    """What is of `type: function`; instead: what is said of any other type."""

    instead: ClassVar[str] = "this server knows tools of type 'function' only"

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def refuse_other_kinds(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise PydanticCustomError("unsupported_parameter", cls.instead)
        return value


class JsonSchema(Wire):
    """strict: accepted; the schema is always kept."""

    name: Name
    description: Description | None = None
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Wire):
    type: Literal["text"]


class JsonObjectFormat(Wire):
    type: Literal["json_object"]


class JsonSchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: JsonSchema


FORMATS = {"text": TEXT, "json_object": OBJECT, "json_schema": SCHEMA}


def format_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return FORMATS.get(kind) if isinstance(kind, str) else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag(TEXT)]
    | Annotated[JsonObjectFormat, Tag(OBJECT)]
    | Annotated[JsonSchemaFormat, Tag(SCHEMA)],
    Discriminator(
        format_kind,
        custom_error_type="invalid_value",
        custom_error_message="must be an object whose type is 'text', 'json_object' or 'json_schema'",
    ),
]


class Function(Wire):
    name: Name
    description: Description | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(FunctionKind):
    function: Function


class NamedFunction(Wire):
    name: Name


class ChosenKind(FunctionKind):
    instead: ClassVar[str] = "not supported here; send 'none', 'auto', 'required' or a function"


class NamedTool(ChosenKind):
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[NamedTool, Tag(OBJECT)],
    one_of_kinds("'none', 'auto', 'required' or an object that names a function"),
]


class CalledFunction(Wire):
    """arguments: JSON as text, as a model wrote it."""

    name: Name
    arguments: str


class ToolCall(Wire):
    """A call that an earlier answer made; `index` is what streams add."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None
