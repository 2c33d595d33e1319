"""From a run to its answer, whole or as events; what chat, completions and responses do alike."""

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from server.disconnects import CLIENT_LEFT, ClientLeft, while_connected
from server.generation import Events, admit, close, collected, merged
from server.metrics import Meter, metered
from server.run import Choice, Run
from server.service import Service
from server.sse import CHUNKS, EventStream, Framing

Asked = TypeVar("Asked", bound=Run)
Chunked = Callable[[Asked, Events], AsyncGenerator[dict[str, Any], None]]
Whole = Callable[[Asked, Sequence[Choice]], dict[str, Any]]


async def answered(
    request: Request,
    service: Service,
    run: Asked,
    started: float,
    chunked: Chunked[Asked],
    whole: Whole[Asked],
    framing: Framing = CHUNKS,
) -> Response:
    """Return the response of a run that was read: chunked's bodies as events, or whole's body.

    started: when the request arrived, by time.perf_counter.
    """
    streams = await admit(service.engine, run.jobs)
    events = metered(merged(streams), Meter(service.metrics, run, started))
    if run.stream:
        return EventStream(chunked(run, events), partial(close, streams), framing)
    try:
        choices = await while_connected(request.receive, collected(run, events))
    except ClientLeft:
        return Response(status_code=CLIENT_LEFT)
    finally:
        await close(streams)
    # In a thread: the log-probabilities of long prompts take longer than others should wait.
    body = await to_thread.run_sync(lambda: to_json(whole(run, choices)))
    return Response(body, media_type="application/json")
