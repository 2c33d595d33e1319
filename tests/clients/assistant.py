"""A scripted model that does what it is asked: calls the tool it is offered, keeps to a schema, or echoes."""

import json
import re
from collections.abc import Mapping
from typing import Any

from server.engine.protocol import GenerationJob
from server.engine.scripted import echo
from server.tool_calls import CLOSE, OPEN

Schema = Mapping[str, Any]
OFFER = re.compile(r"described by a JSON schema:\n(.*?)\nTo call one,", re.DOTALL)
RESULT = "<tool_response>"


def obey(job: GenerationJob) -> str:
    """Return an answer that a well-behaved model could give."""
    question = echo(job)
    if job.sampling.grammar is not None:
        schema = json.loads(job.sampling.grammar.schema)
        return json.dumps(example(schema, question, schema), ensure_ascii=False)
    functions = offered(job)
    if not functions or RESULT in question:
        return question
    name, parameters = functions[0]["name"], functions[0].get("parameters", {})
    call = {"name": name, "arguments": example(parameters, question, parameters)}
    return f"{OPEN}{json.dumps(call, ensure_ascii=False)}{CLOSE}"


def offered(job: GenerationJob) -> list[dict[str, Any]]:
    """Return the functions that the prompt describes, one a line."""
    prompt = bytes(token for token in job.prompt if token < 256).decode(errors="replace")
    found = OFFER.search(prompt)
    return [json.loads(line) for line in found[1].splitlines()] if found else []


def example(schema: Schema, question: str, root: Schema) -> Any:
    """Return a value that the schema allows, made of what the question says.

    root: where references begin.
    """
    if "$ref" in schema:
        return example(at(root, schema["$ref"]), question, root)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return example(schema[key][0], question, root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if schema.get("type") == "array":
        return [example(schema.get("items", {}), question, root)]
    if schema.get("type", "object") == "object":
        return example_object(schema, question, root)
    return example_value(schema["type"], question)


def example_object(schema: Schema, question: str, root: Schema) -> dict[str, Any]:
    """Return an object; where nothing says which keys, those that the question quotes."""
    quoted = {name: {"type": "string"} for name in re.findall(r"'(\w+)'", question)}
    properties = schema.get("properties") or quoted
    return {name: example(each, question, root) for name, each in properties.items()}


def example_value(kind: str, question: str) -> Any:
    quoted, number = re.search(r"'([^']+)'", question), re.search(r"\d+", question)
    values: dict[str, Any] = {
        "string": quoted[1] if quoted else question,
        "integer": int(number[0]) if number else 3,
        "number": float(number[0]) if number else 0.5,
        "boolean": True,
        "null": None,
    }
    return values[kind]


def at(root: Schema, reference: str) -> Schema:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[int(part) if isinstance(found, list) else part.replace("~1", "/").replace("~0", "~")]
    return found
