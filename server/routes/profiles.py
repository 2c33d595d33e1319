"""GET /v1/steering/profiles: what a request can be steered with."""

from typing import Any, Literal, NotRequired

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from typing_extensions import TypedDict

from server.routes import documented
from server.service import Service, service_of
from server.steering_syntax import parse_profile
from steering.errors import InvalidSteering, ProfileNotFound
from steering.types import ModelIdentity, Positions, Tokens
from vector_store.manifest import Manifest, incompatibility
from vector_store.store import ProfileEntry

router = APIRouter()
KIND = "steering.profile"
PROFILES, PROFILE = "/v1/steering/profiles", "/v1/steering/profiles/{name}"


class Listed(TypedDict):
    """A profile; one that cannot be read has no more than the reason. model: a name, in detail its record."""

    object: Literal["steering.profile"]
    name: str
    version: int | None
    digest: str | None
    compatible: bool
    reason: str | None
    description: NotRequired[str]
    layers: NotRequired[list[int]]
    positions: NotRequired[Positions]
    tokens: NotRequired[Tokens]
    method: NotRequired[str]
    model: NotRequired[str | dict[str, Any]]
    created: NotRequired[str]


class Profiles(TypedDict):
    object: Literal["list"]
    data: list[Listed]


class Detailed(Listed):
    """What its manifest says besides; see docs/design.md."""

    versions: list[int]
    operation: str
    site: str
    parameters: dict[str, Any]
    pairs: dict[str, Any] | None
    seed: int
    libraries: dict[str, str]
    calibration: dict[str, Any]
    evidence: dict[str, Any]


@router.get(PROFILES, response_model=None, responses=documented.answer_of(PROFILES, Profiles, method="get"))
async def list_profiles(request: Request) -> dict[str, Any]:
    service = service_of(request)
    entries = await run_in_threadpool(service.store.entries)
    identity = service.translator.identity
    return {"object": "list", "data": [listed(entry, identity) for entry in entries]}


@router.get(PROFILE, response_model=None, responses=documented.answer_of(PROFILE, Detailed, method="get"))
async def retrieve_profile(request: Request, name: str) -> dict[str, Any]:
    """Describe a profile, `name` or `name@version`, with its evidence and its versions."""
    return await run_in_threadpool(detailed, name, service_of(request))


def detailed(asked: str, service: Service) -> dict[str, Any]:
    try:
        name, version = parse_profile(asked, "name")
    except InvalidSteering as error:
        raise ProfileNotFound(error.message, "name") from error
    manifest = service.store.get(name, version).manifest
    told = manifest.model_dump(mode="json", exclude={"name", "version", "digest", "schema_version"})
    return {
        **summary(manifest, service.translator.identity),
        **told,
        "versions": service.store.versions(name),
    }


def listed(entry: ProfileEntry, model: ModelIdentity) -> dict[str, Any]:
    """Return a line of the listing; a profile that cannot be read is listed with the reason."""
    if entry.manifest is not None and entry.problem is None:
        return summary(entry.manifest, model)
    return {
        "object": KIND,
        "name": entry.name,
        "version": entry.version,
        "digest": None,
        "compatible": False,
        "reason": entry.problem,
    }


def summary(manifest: Manifest, model: ModelIdentity) -> dict[str, Any]:
    reason = incompatibility(manifest, model)
    return {
        "object": KIND,
        "name": manifest.name,
        "version": manifest.version,
        "digest": manifest.digest,
        "compatible": reason is None,
        "reason": reason,
        "description": manifest.description,
        "layers": list(manifest.layers),
        "positions": manifest.positions,
        "tokens": manifest.tokens,
        "method": manifest.method,
        "model": manifest.model.id,
        "created": manifest.created,
    }
