"""/health, /ready, /version and /metrics: what the server is and how it is doing."""

from dataclasses import replace
from importlib.metadata import version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from server.engine.protocol import EngineHealth, EngineState
from server.routes import documented
from server.service import Service, service_of

router = APIRouter()
HEALTH, READY, VERSION, METRICS = "/health", "/ready", "/version", "/metrics"
SAMPLES: documented.Answers = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}
}


class Health(TypedDict):
    """running, waiting: how many requests."""

    status: EngineState
    reason: str | None
    running: int
    waiting: int


class Version(TypedDict):
    version: str


def told_at(path: str) -> documented.Answers:
    """Return the `responses` of a health check: the same at 503, which says no."""
    good = documented.answer_of(path, Health, method="get")
    return {**good, 503: {**good[200], "description": "Not now, and why."}}


@router.head(HEALTH, include_in_schema=False)
@router.get(HEALTH, responses=told_at(HEALTH))
async def health(request: Request) -> Response:
    """Say how the engine is; 503 when it is dead and the process should be replaced."""
    found = health_of(service_of(request))
    return report(found, found.state != "dead")


@router.head(READY, include_in_schema=False)
@router.get(READY, responses=told_at(READY))
async def ready(request: Request) -> Response:
    """Say whether requests should be sent here now."""
    found = health_of(service_of(request))
    return report(found, found.state == "ready")


@router.get(VERSION, response_model=None, responses=documented.answer_of(VERSION, Version, method="get"))
async def tell_version() -> dict[str, str]:
    return {"version": version("grainserve")}


@router.get(METRICS, response_class=Response, responses=SAMPLES)
async def metrics(request: Request) -> Response:
    text = generate_latest(service_of(request).metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def health_of(service: Service) -> EngineHealth:
    """Return the engine's health; a server that is to stop drains before its engine does."""
    found = service.engine.health()
    if service.intake.closed and found.state == "ready":
        return replace(found, state="draining", reason="the server was told to stop")
    return found


def report(found: EngineHealth, good: bool) -> Response:
    told = {
        "status": found.state,
        "reason": found.reason,
        "running": found.running,
        "waiting": found.waiting,
    }
    return JSONResponse(told, 200 if good else 503)
