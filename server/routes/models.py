"""GET /v1/models: the model, and the model with each profile that fits it."""

import time
from typing import Any, Literal, NotRequired

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from typing_extensions import TypedDict

from server.routes import documented
from server.service import Service, service_of
from steering.errors import InvalidRequest, ModelNotFound
from vector_store.manifest import incompatibility

router = APIRouter()
STARTED = int(time.time())
MODELS, MODEL = "/v1/models", "/v1/models/{model_id}"


class Model(TypedDict):
    """parent: of a model with a profile, the model alone."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["grainserve"]
    parent: NotRequired[str]


class Models(TypedDict):
    object: Literal["list"]
    data: list[Model]


@router.get(MODELS, response_model=None, responses=documented.answer_of(MODELS, Models, method="get"))
async def list_models(request: Request) -> dict[str, Any]:
    service = service_of(request)
    name = service.translator.served.name
    profiles = await run_in_threadpool(compatible_profiles, service)
    steered = [described(f"{name}:{profile}", name) for profile in profiles]
    return {"object": "list", "data": [described(name, None), *steered]}


@router.get(
    "/v1/models/{model_id:path}",
    response_model=None,
    responses=documented.answer_of(MODEL, Model, method="get"),
)
async def retrieve_model(request: Request, model_id: str) -> dict[str, Any]:
    """Describe the model under its name, or under its name and any steering that works."""
    service = service_of(request)
    suffix = service.translator.served.suffix_of(model_id)
    if suffix is None:
        return described(model_id, None)
    try:
        await run_in_threadpool(service.translator.plans_of, model_id, None, Headers(), None)
    except InvalidRequest as error:
        raise ModelNotFound(error.message, "model") from error
    return described(model_id, model_id.removesuffix(f":{suffix}"))


def compatible_profiles(service: Service) -> list[str]:
    identity = service.engine.card.identity
    return [
        entry.name
        for entry in service.store.entries()
        if entry.manifest is not None
        and entry.problem is None
        and incompatibility(entry.manifest, identity) is None
    ]


def described(model_id: str, parent: str | None) -> dict[str, Any]:
    model = {"id": model_id, "object": "model", "created": STARTED, "owned_by": "grainserve"}
    return model if parent is None else {**model, "parent": parent}
