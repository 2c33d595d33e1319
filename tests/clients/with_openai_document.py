"""Hold answers against OpenAI's own description: with_openai_document.py openapi.yaml answers.json.

answers.json: a list of [what was asked, the name of a schema, the body]. Prints what does not hold.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = "urn:openai"


def main(document: Path, answers: Path) -> None:
    described = yaml.load(document.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    described = with_nulls(described)
    registry = Registry().with_resource(DOCUMENT, Resource(described, DRAFT202012))
    for asked, name, body in json.loads(answers.read_text("utf-8")):
        schema = {"$ref": f"{DOCUMENT}#/components/schemas/{name}"}
        for error in Draft202012Validator(schema, registry=registry).iter_errors(body):
            print(f"{asked} ({name}): {told(error)}")


def with_nulls(schema: Any) -> Any:
    """Return the document with `nullable: true`, a word of OpenAPI 3.0 that it still has, as JSON Schema."""
    if isinstance(schema, list):
        return [with_nulls(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: with_nulls(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [rest, {"type": "null"}]} if schema.get("nullable") is True else rest


def told(error: ValidationError) -> str:
    """Return the error and, of alternatives, why the nearest does not hold."""
    nearest = min(error.context or (), key=lambda each: -len(each.absolute_path), default=None)
    place = "/".join(map(str, error.absolute_path))
    return f"{place}: {error.message[:300]}" + (f"; {told(nearest)}" if nearest else "")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
