"""What /openapi.json says of the routes: bodies that they read themselves, and answers, as JSON schemas."""

from typing import Any, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

JSON, EVENTS = "application/json", "text/event-stream"
DONE = {"const": "[DONE]"}
Answers = dict[int | str, dict[str, Any]]


class Problem(TypedDict):
    """param: the path of the field that is wrong, where one is."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class Refusal(TypedDict):
    error: Problem


def body_of(path: str, model: Any) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose body is the model."""
    place = f"{operation(path)}/requestBody/content/{escaped(JSON)}/schema"
    schema = schema_at(place, model)
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def answer_of(
    path: str, answer: Any, *, method: str = "post", parts: Any = None, events: Any = None
) -> Answers:
    """Return the `responses` of a route whose answer has this type.

    parts: or comes as events that hold this type, `[DONE]` last; events: or as events that hold this type,
    whose last says how it ended.
    """
    place = f"{operation(path, method)}/responses/200/content"
    content = {JSON: {"schema": schema_at(f"{place}/{escaped(JSON)}/schema", answer)}}
    told = "The answer."
    if parts is not None:
        told = "The answer, whole or, with `stream`, as events whose last is `[DONE]`."
        content[EVENTS] = {"schema": event_of(f"{place}/{escaped(EVENTS)}/schema", parts | Refusal, DONE)}
    if events is not None:
        told = "The answer, whole or, with `stream`, as events whose last holds it whole."
        content[EVENTS] = {"schema": event_of(f"{place}/{escaped(EVENTS)}/schema", events)}
    return {200: {"description": told, "content": content}}


def event_of(place: str, told: Any, *others: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an event whose data is JSON of this type, or one of the others."""
    schema = schema_at(place, told)
    parts = schema.pop("$defs", {})
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": schema}
    return {
        "type": "object",
        "properties": {"data": {"anyOf": [data, *others]}},
        "required": ["data"],
        "$defs": parts,
    }


def problems() -> Answers:
    """Return the `responses` of what went wrong, the same for every route."""
    schema = TypeAdapter(Refusal).json_schema(ref_template="#/components/schemas/{model}")
    (problem,) = schema.pop("$defs").values()
    schema["properties"]["error"] = problem
    told = {"description": "OpenAI's error object.", "content": {JSON: {"schema": schema}}}
    return {"4XX": told, "5XX": told}


def operation(path: str, method: str = "post") -> str:
    return f"#/paths/{escaped(path)}/{method}"


def escaped(name: str) -> str:
    """Return the name as a JSON pointer has it."""
    return name.replace("/", "~1")


def schema_at(place: str, described: Any) -> dict[str, Any]:
    """Return the type's schema, whose references hold when it stands at the place."""
    template = place.replace("{", "{{").replace("}", "}}") + "/$defs/{model}"
    return TypeAdapter(described).json_schema(ref_template=template)
