"""What /openapi.json says of the routes that read their own bytes: bodies and answers as JSON schemas."""

from typing import Any

from pydantic import TypeAdapter

JSON, EVENTS = "application/json", "text/event-stream"


def body_of(path: str, model: Any) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose body is the model."""
    place = f"{operation(path)}/requestBody/content/{escaped(JSON)}/schema"
    schema = schema_at(place, model)
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def answer_of(
    path: str, answer: Any, streamed: bool = False, events: Any = None
) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route whose answer has this type.

    streamed: or comes as such events, `[DONE]` last; events: or as events of this type, whose last says how
    it ended.
    """
    described = {JSON: answer}
    told = "The answer."
    if streamed:
        described[EVENTS] = answer
        told = "The answer, whole or, with `stream`, as events whose last is `[DONE]`."
    if events is not None:
        described[EVENTS] = events
        told = "The answer, whole or, with `stream`, as events whose last holds it whole."
    content = {
        kind: {"schema": schema_at(f"{operation(path)}/responses/200/content/{escaped(kind)}/schema", each)}
        for kind, each in described.items()
    }
    return {200: {"description": told, "content": content}}


def operation(path: str) -> str:
    return f"#/paths/{escaped(path)}/post"


def escaped(name: str) -> str:
    """Return the name as a JSON pointer has it."""
    return name.replace("/", "~1")


def schema_at(place: str, described: Any) -> dict[str, Any]:
    """Return the type's schema, whose references hold when it stands at the place."""
    return TypeAdapter(described).json_schema(ref_template=f"{place}/$defs/{{model}}")
