"""POST /tokenize and /detokenize: between text and token ids, as the served model reads them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from server.prompt_tokens import text_of
from server.prompts import UnsupportedImages, placed_images, refuse_images
from server.reading import body_of, parsed
from server.routes import documented
from server.sampling_option import check_tokens
from server.service import Service, service_of
from server.tooling import tooling_of
from server.translate import Translator
from server.wire.chat import ChatRequest
from server.wire.tokens import MOST_CHARACTERS, DetokenizeRequest, TokenizeRequest
from steering.errors import InvalidRequest

router = APIRouter()
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"


class Tokenized(TypedDict):
    """count: how many tokens; max_model_len: how many fit, the completion included."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    prompt: str


@router.post(
    TOKENIZE,
    openapi_extra=documented.body_of(TOKENIZE, TokenizeRequest),
    responses=documented.answer_of(TOKENIZE, Tokenized),
)
async def tokenize(request: Request) -> Response:
    """Return the token ids of a text or of a conversation."""
    return await in_thread(tokenized, request)


@router.post(
    DETOKENIZE,
    openapi_extra=documented.body_of(DETOKENIZE, DetokenizeRequest),
    responses=documented.answer_of(DETOKENIZE, Detokenized),
)
async def detokenize(request: Request) -> Response:
    """Return the text of token ids, special ones included."""
    return await in_thread(detokenized, request)


async def in_thread(answer: Callable[[bytes, Request, Translator], Any], request: Request) -> Response:
    """Return the answer as JSON, made beside the event loop: texts may be megabytes long."""
    service: Service = service_of(request)
    body = await body_of(request)
    made = await to_thread.run_sync(
        lambda: to_json(answer(body, request, service.translator)), limiter=service.tokenizing
    )
    return Response(made, media_type="application/json")


def tokenized(body: bytes, request: Request, translator: Translator) -> Tokenized:
    asked = parsed(body, TokenizeRequest)
    check_model(asked.model, request, translator)
    tokens, tokenizer = tokens_of(asked, translator), translator.card.tokenizer
    return {
        "count": len(tokens),
        "max_model_len": translator.card.context_length,
        "tokens": tokens,
        "token_strs": tokenizer.convert_ids_to_tokens(tokens) if asked.return_token_strs else None,
    }


def detokenized(body: bytes, request: Request, translator: Translator) -> Detokenized:
    asked = parsed(body, DetokenizeRequest)
    check_model(asked.model, request, translator)
    check_tokens(dict.fromkeys(asked.tokens), translator.card.vocabulary_size, "tokens")
    return {"prompt": text_of(asked.tokens, translator.card.tokenizer)}


def check_model(model: str | None, request: Request, translator: Translator) -> None:
    """Refuse a model or steering that does not exist, although neither changes a token."""
    translator.plans_of(translator.served.name if model is None else model, None, request.headers, None)


def tokens_of(asked: TokenizeRequest, translator: Translator) -> list[int]:
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidRequest("send either 'prompt' or 'messages'", "prompt")
    if asked.prompt is None:
        refuse_beside("messages", "add_special_tokens", asked.add_special_tokens)
        return tokens_of_messages(asked, translator)
    refuse_beside("prompt", "tools", asked.tools or None)
    refuse_beside("prompt", "add_generation_prompt", asked.add_generation_prompt)
    special = asked.add_special_tokens is not False
    return list(translator.card.tokenizer(asked.prompt, add_special_tokens=special)["input_ids"])


def refuse_beside(sent: str, field: str, value: object) -> None:
    if value is not None:
        raise InvalidRequest(f"{field} has no meaning beside '{sent}'; leave it out", field)


def tokens_of_messages(asked: TokenizeRequest, translator: Translator) -> list[int]:
    """Return the prompt that chat makes of the messages and tools; images are refused."""
    same = ChatRequest.model_construct(
        model=translator.served.name,
        messages=asked.messages or [],
        tools=asked.tools,
        add_generation_prompt=asked.add_generation_prompt,
    )
    images = dict(placed_images(same.messages))
    if translator.card.pictured is None:
        refuse_images(images)
    for place in images:
        raise UnsupportedImages("images are not counted here", place.removesuffix(".url"))
    counting = replace(translator, most_characters=max(translator.most_characters, MOST_CHARACTERS))
    tokens, _ = counting.rendered(same, {}, tooling_of(same, translator.tool_format))
    return list(tokens)
