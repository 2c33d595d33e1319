"""From a request's bytes to its model: content type, JSON, fields, and nothing said twice."""

import json
import math
from collections import Counter
from functools import partial
from typing import TypeVar

from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request

from server.nesting import MOST_CONTAINERS, crowded
from server.problems import BodyRefused, WrongContentType
from server.wire.base import Wire
from steering.errors import InvalidRequest, InvalidSteering
from vector_store.names import quoted

Body = TypeVar("Body", bound=Wire)


async def body_of(request: Request) -> bytes:
    """Return the body of a request that says it is JSON."""
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise WrongContentType("send the body as JSON, with 'Content-Type: application/json'")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise WrongContentType("no compressed body is read; send it as it is, without 'Content-Encoding'")
    refuse_query(request.query_params)
    return await request.body()


def refuse_query(query: QueryParams) -> None:
    """Refuse steering in the address, rather than run without what it asked for."""
    for name in query:
        if "steering" in name.lower():
            raise InvalidSteering(
                f"{quoted(name)} stands in the address; send 'steering' in the body", name[:200]
            )


def parsed(body: bytes, model: type[Body]) -> Body:
    """Return the request that the body holds, or raise what is wrong with it."""
    if crowded(body):
        raise InvalidRequest(
            f"there are more than {MOST_CONTAINERS} arrays and objects in the body, the most that this "
            "server reads; send fewer"
        )
    try:
        request = model.model_validate_json(body)
    except ValidationError as error:
        raise BodyRefused(error, model) from None
    mistakes: list[object] = []
    numbers = partial(number_of, mistakes)
    value = json.loads(
        body, object_pairs_hook=partial(object_of, mistakes), parse_float=numbers, parse_constant=numbers
    )
    if mistakes:
        refuse_mistakes(value)
    return request


class Repeating(dict[str, object]):
    """An object that says a key twice; it holds that key alone."""


class Infinite(str):
    """A number that JSON knows no word for, as it was written."""

    __slots__ = ()


def object_of(mistakes: list[object], pairs: list[tuple[str, object]]) -> dict[str, object]:
    read = dict(pairs)
    if len(read) == len(pairs):
        return read
    repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
    mistakes.append(mistake := Repeating({repeated: None}))
    return mistake


def number_of(mistakes: list[object], written: str) -> float | Infinite:
    value = float(written)
    if math.isfinite(value):
        return value
    mistakes.append(mistake := Infinite(written))
    return mistake


def refuse_mistakes(value: object, place: str = "") -> None:
    """Refuse what JSON allows or Python reads, and no request may hold, wherever it stands.

    The last of two members of a name would win without a word; numbers that are not finite are no JSON.
    """
    if isinstance(value, Repeating):
        (repeated,) = value
        told = f"{quoted(repeated)} stands twice in one object; say it once"
        raise InvalidRequest(told, f"{place}.{repeated}" if place else str(repeated))
    if isinstance(value, Infinite):
        raise InvalidRequest(f"{quoted(value)} is no finite number", place or None)
    if isinstance(value, dict):
        for key, member in value.items():
            refuse_mistakes(member, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for number, member in enumerate(value):
            refuse_mistakes(member, f"{place}[{number}]")
