"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import Mapping

from anyio import to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.chat_replies import chunked, completion
from server.chat_shapes import ChatChunk, ChatCompletion
from server.pairing import refuse_unpaired
from server.reading import body_of, parsed
from server.routes import documented
from server.routes.answering import answered
from server.run import Run
from server.service import Service, service_of
from server.wire.chat import ChatRequest

PATH = "/v1/chat/completions"
router = APIRouter()


@router.post(
    PATH,
    openapi_extra=documented.body_of(PATH, ChatRequest),
    responses=documented.answer_of(PATH, ChatCompletion, parts=ChatChunk),
)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, steered as the request says."""
    started = time.perf_counter()
    service = service_of(request)
    run = await read_run(request, service)
    return await answered(request, service, run, started, chunked, completion)


async def read_run(request: Request, service: Service) -> Run:
    """Return the run of the request; parsing, rendering and tokenising stay off the event loop."""
    body = await body_of(request)
    # Few at a time: a body of megabytes takes seconds and hundreds of megabytes to tokenise.
    asked, urls = await to_thread.run_sync(looked_into, body, service, limiter=service.translating)
    return await run_of(asked, urls, request, service, f"chatcmpl-{uuid.uuid4().hex}")


async def run_of(
    asked: ChatRequest, urls: Mapping[str, str], request: Request, service: Service, run_id: str
) -> Run:
    """Return the run of what is asked; urls: of its images, by their places in it."""
    images: dict[str, str | bytes] = {**urls, **await service.fetcher.fetch_all(urls)}
    limiter = service.picturing if images else service.translating
    translate = service.translator.run_of
    return await to_thread.run_sync(
        translate, asked, request.headers, images, run_id, int(time.time()), limiter=limiter
    )


def looked_into(body: bytes, service: Service) -> tuple[ChatRequest, dict[str, str]]:
    """Return the request, and the URLs of its images."""
    asked = parsed(body, ChatRequest)
    refuse_unpaired(asked.messages)
    return asked, service.translator.images_of(asked)
