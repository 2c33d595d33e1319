"""POST /v1/completions: OpenAI's legacy completions."""

import time
import uuid

from anyio import to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.completion_replies import Completion, chunked, completion
from server.reading import body_of, parsed
from server.routes import documented
from server.routes.answering import answered
from server.service import Service, service_of
from server.translate_completion import CompletionRun, completion_run
from server.wire.completions import CompletionRequest

PATH = "/v1/completions"
router = APIRouter()


@router.post(
    PATH,
    openapi_extra=documented.body_of(PATH, CompletionRequest),
    responses=documented.answer_of(PATH, Completion, parts=Completion),
)
async def create_completion(request: Request) -> Response:
    """Continue prompts, steered as the request says."""
    started = time.perf_counter()
    service = service_of(request)
    body = await body_of(request)
    run = await to_thread.run_sync(read_run, body, request, service, limiter=service.translating)
    return await answered(request, service, run, started, chunked, completion)


def read_run(body: bytes, request: Request, service: Service) -> CompletionRun:
    asked = parsed(body, CompletionRequest)
    run_id = f"cmpl-{uuid.uuid4().hex}"
    return completion_run(service.translator, asked, request.headers, run_id, int(time.time()))
