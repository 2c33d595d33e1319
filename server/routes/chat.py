"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import Mapping
from functools import partial

from anyio import to_thread
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from server.chat_replies import chunked, completion
from server.disconnects import CLIENT_LEFT, ClientLeft, while_connected
from server.generation import admit, close, collected, merged
from server.metrics import Meter, metered
from server.reading import body_of, parsed
from server.run import Run
from server.service import Service, service_of
from server.sse import EventStream, framed_all
from server.wire.chat import ChatRequest

router = APIRouter()
PLACE = "#/paths/~1v1~1chat~1completions/post/requestBody/content/application~1json/schema"
SCHEMA = ChatRequest.model_json_schema(ref_template=f"{PLACE}/$defs/{{model}}")
DOCUMENTED = {"requestBody": {"required": True, "content": {"application/json": {"schema": SCHEMA}}}}


@router.post("/v1/chat/completions", openapi_extra=DOCUMENTED)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, steered as the request says."""
    started = time.perf_counter()
    service = service_of(request)
    run = await read_run(request, service)
    streams = await admit(service.engine, run.jobs)
    events = metered(merged(streams), Meter(service.metrics, run, started))
    if run.stream:
        return EventStream(framed_all(chunked(run, events)), partial(close, streams))
    try:
        choices = await while_connected(request.receive, collected(run, events))
    except ClientLeft:
        return Response(status_code=CLIENT_LEFT)
    finally:
        await close(streams)
    return Response(to_json(completion(run, choices)), media_type="application/json")


async def read_run(request: Request, service: Service) -> Run:
    """Return the run of the request; parsing, rendering and tokenising stay off the event loop."""
    body = await body_of(request)
    # Few at a time: a body of megabytes takes seconds and hundreds of megabytes to tokenise.
    asked, urls = await to_thread.run_sync(looked_into, body, service, limiter=service.translating)
    images: dict[str, str | bytes] = {**urls, **await service.fetcher.fetch_all(urls)}
    limiter = service.picturing if images else service.translating
    return await to_thread.run_sync(translated, asked, request, service, images, limiter=limiter)


def looked_into(body: bytes, service: Service) -> tuple[ChatRequest, dict[str, str]]:
    """Return the request, and the URLs of its images."""
    asked = parsed(body, ChatRequest)
    return asked, service.translator.images_of(asked)


def translated(
    asked: ChatRequest, request: Request, service: Service, images: Mapping[str, str | bytes]
) -> Run:
    run_id = f"chatcmpl-{uuid.uuid4().hex}"
    return service.translator.run_of(asked, request.headers, images, run_id, int(time.time()))
