"""create_app: the only wiring."""

import gc
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from server.config import Settings
from server.deadlines import DeadlineCheck
from server.engine.grammar import Grammars
from server.engine.protocol import Engine
from server.fetching import Fetcher
from server.intake import Intake, IntakeCheck
from server.metrics import Metrics
from server.middleware import BodyLimit, Envelope, KeyCheck
from server.naming import served_name
from server.problems import problem_of
from server.prompts import longest_token
from server.routes import chat, completions, documented, models, operations, profiles, responses, tokens
from server.service import Service
from server.steering_option import Resolver
from server.template_option import template_option
from server.tooling import tool_format
from server.translate import Translator
from steering.errors import ProfileCorrupt, SteeringError
from steering.images import ImageLimits
from vector_store.store import VectorStore

logger = logging.getLogger(__name__)
ROUTERS = [each.router for each in (chat, completions, responses, tokens, models, profiles, operations)]
ROUTES = [route for router in ROUTERS for route in router.routes]
MOST_BYTES, MOST_BYTES_WITH_IMAGES = 4 * 1024**2, 20 * 1024**2


def create_app(settings: Settings, engine: Engine, store: VectorStore) -> FastAPI:
    """Return the application; it starts the engine with its lifespan and closes it."""
    metrics, intake = Metrics(engine), Intake()
    app = FastAPI(
        title="grainserve",
        version=version("grainserve"),
        lifespan=running(engine),
        redirect_slashes=False,
        responses=documented.problems(),
        middleware=[
            *shared_with(settings.cors_origin),
            Middleware(Envelope, metrics=metrics, intake=intake, routes=ROUTES),
            Middleware(KeyCheck, keys=settings.keys),
            Middleware(IntakeCheck, intake=intake),
            Middleware(DeadlineCheck, seconds=settings.request_timeout),
            Middleware(BodyLimit, limit=body_limit(settings, engine), seconds=settings.body_timeout),
        ],
        exception_handlers={SteeringError: answer_problem, HTTPException: answer_problem},
    )
    fetcher = Fetcher(frozenset(map(str.lower, settings.image_host)), body_limit(settings, engine))
    app.state.service = Service(
        settings, engine, store, metrics, translator(settings, engine, store), fetcher, intake
    )
    for router in ROUTERS:
        app.include_router(router)
    return app


def translator(settings: Settings, engine: Engine, store: VectorStore) -> Translator:
    card = engine.card
    identity = card.identity
    return Translator(
        card,
        served_name(identity.id, settings.served_model_name),
        Resolver(store, identity, settings.max_strength, card.pictured is not None),
        most_choices=settings.max_batch_size + settings.max_waiting,
        most_characters=card.context_length * longest_token(card.tokenizer),
        limits=ImageLimits(settings.max_images, settings.max_image_pixels),
        grammars=Grammars(card.tokenizer, card.vocabulary_size, card.end_tokens),
        tool_format=tool_format(card.tokenizer, card.pictured),
        template_option=template_option(card.tokenizer, card.pictured, settings.allow_template_kwargs),
    )


def body_limit(settings: Settings, engine: Engine) -> int:
    """Return the most bytes of a body: images take more than words."""
    return settings.max_body_bytes or (MOST_BYTES_WITH_IMAGES if engine.card.pictured else MOST_BYTES)


def running(engine: Engine) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if engine.health().state == "starting":
            await engine.start()
        gc.collect()
        gc.freeze()  # what is loaded stays: collections need not walk it again
        try:
            yield
        finally:
            gc.unfreeze()
            await engine.close()

    return lifespan


def shared_with(origins: Sequence[str]) -> list[Middleware]:
    """Return what lets browsers show answers to pages of these origins; it asks for no key of its own."""
    told = ["x-request-id", "retry-after", "x-should-retry"]
    sharing = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=told,
    )
    return [sharing] if origins else []


async def answer_problem(_request: Request, error: Exception) -> Response:
    if isinstance(error, ProfileCorrupt):
        logger.error("%s", error.message)  # for the operator: the caller cannot mend it
    return problem_of(error).response()
