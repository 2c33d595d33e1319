"""POST /v1/responses: OpenAI's Responses, without state; what would need state says so."""

import time
import uuid
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server import response_replies
from server.reading import body_of, parsed
from server.response_events import StreamEvent, Telling, whole
from server.routes import chat, documented
from server.routes.answering import answered
from server.service import Service, service_of
from server.translate_response import ResponseRun, Terms, as_chat, response_run
from server.wire.chat import ChatRequest
from server.wire.responses import ResponseRequest
from steering.errors import NotFound

PATH = "/v1/responses"
NONE_KEPT: dict[str, Any] = {
    "status_code": 404,
    "response_description": "No response is kept.",
    "response_model": None,
}
router = APIRouter()


class ResponseNotKept(NotFound):
    code = "response_not_found"


@router.post(
    PATH,
    openapi_extra=documented.body_of(PATH, ResponseRequest),
    responses=documented.answer_of(PATH, response_replies.Response, events=StreamEvent),
)
async def create_response(request: Request) -> Response:
    """Answer items, steered as the request says; nothing is stored."""
    started = time.perf_counter()
    service = service_of(request)
    run = await read_run(request, service)
    telling = Telling(run)
    return await answered(request, service, run, started, telling.told, whole, telling)


async def read_run(request: Request, service: Service) -> ResponseRun:
    """Return the run of the request, made as that of the chat request of the same meaning."""
    body = await body_of(request)
    asked, same, terms, urls = await to_thread.run_sync(
        looked_into, body, service, limiter=service.translating
    )
    with terms.spoken():
        run = await chat.run_of(same, urls, request, service, f"resp_{uuid.uuid4().hex}")
    return response_run(run, asked)


def looked_into(body: bytes, service: Service) -> tuple[ResponseRequest, ChatRequest, Terms, dict[str, str]]:
    """Return the request, as chat says it, how errors are to name its places, and the URLs of its images."""
    asked = parsed(body, ResponseRequest)
    same, terms = as_chat(asked)
    with terms.spoken():
        return asked, same, terms, service.translator.images_of(same)


# Before the paths that name a response: of routes that share a path, the first says which methods there are.
@router.post(f"{PATH}/input_tokens", include_in_schema=False)
async def count_input_tokens() -> None:
    """Say what counts tokens."""
    raise NotFound("input is not counted here; POST /tokenize counts the tokens of messages and tools")


@router.post(f"{PATH}/compact", include_in_schema=False)
async def compact_input() -> None:
    """Say that no conversation is made shorter."""
    raise NotFound("this server does not compact conversations; POST /tokenize says how many tokens one has")


@router.get(f"{PATH}/{{response_id}}", **NONE_KEPT)
@router.delete(f"{PATH}/{{response_id}}", **NONE_KEPT)
@router.post(f"{PATH}/{{response_id}}/cancel", **NONE_KEPT)
@router.get(f"{PATH}/{{response_id}}/input_items", **NONE_KEPT)
# Registered first, for who sends another method: of routes that share a path, the first says which there are.
@router.api_route(f"{PATH}/{{response_id}}", methods=["GET", "DELETE"], include_in_schema=False)
async def find_response(response_id: str) -> None:
    """Say that no response is kept."""
    raise ResponseNotKept(
        "this server keeps no state, so it has no responses of before; send the whole conversation as input "
        "of a new one",
        "response_id",
    )
