"""From a request's bytes to its model: content type, JSON, fields, and nothing said twice."""

import json
import math
from collections import Counter
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
    json.loads(body, object_pairs_hook=refuse_repeats, parse_float=finite, parse_constant=finite)
    return request


def finite(number: str) -> float:
    """Return the number, or refuse what JSON knows no word for, wherever it stands."""
    value = float(number)
    if not math.isfinite(value):
        raise InvalidRequest(f"{quoted(number)} is no finite number")
    return value


def refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object that says a key twice: the last one would win without a word."""
    read = dict(pairs)
    if len(read) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InvalidRequest(f"{quoted(repeated)} stands twice in one object; say it once", repeated[:200])
    return read
