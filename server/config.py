"""The server's settings: a flag goes before the environment (GRAINSERVE_*), which goes before the file."""

import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_cache_path
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from server.keys import Key, KeyFile, Keys
from vector_store.places import default_root

PREFIX = "GRAINSERVE_"
# What Kubernetes puts into a pod for a service of that name.
OF_KUBERNETES = re.compile(r"GRAINSERVE_(SERVICE_(HOST|PORT\w*)=.*|PORT_\d+_\w+=.*|PORT=tcp://.*)")
LINKED = (
    "Kubernetes sets it for a service named grainserve, and it is no setting; put enableServiceLinks: false "
    "into the pod's spec"
)
# The engine's first, own job is ten tokens long.
LEAST_CONTEXT = 16
# Beyond it float32 cannot hold the longest profile's steered activation.
MOST_STRENGTH = 1000


class BadSettings(Exception):
    """The settings cannot be used; the message says which and why."""


def split_names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [name.strip() for name in value.split(",") if name.strip()]


def read_arguments(value: Any) -> Any:
    """Return name=value pairs as a dict; each value is read as JSON, or else is the text that it is."""
    if isinstance(value, str):
        value = listed(value) if value.lstrip().startswith(("{", "[")) else split_names(value)
    if not isinstance(value, list | tuple):
        return value
    pairs = [str(each).partition("=") for each in value]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise ValueError('write name=value, or all as a JSON object: {"name": value}')
    return {name.strip().replace("-", "_"): json_or_text(said) for name, _, said in pairs}


def listed(said: str) -> Any:
    try:
        return json.loads(said)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error


def json_or_text(said: str) -> Any:
    try:
        return json.loads(said)
    except ValueError:
        return said


HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")]
Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s,*]+)$")]
Origins = Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(split_names)]
Hosts = Annotated[tuple[HostName, ...], NoDecode, BeforeValidator(split_names)]
Arguments = Annotated[dict[str, Any], NoDecode, BeforeValidator(read_arguments)]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class Settings(BaseSettings):
    """All that can be set; the fields' descriptions are the flags' help."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    model: str | None = Field(
        None, min_length=1, description="Model id or directory; none: the embedded one."
    )
    served_model_name: str | None = Field(None, min_length=1, description="The name that clients see.")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="transformers, or vllm where that is installed."
    )
    engine_arg: Arguments = Field(
        default_factory=dict, description="An argument of vLLM's own, name=value; repeatable."
    )
    max_profiles: int = Field(
        64, ge=8, le=4096, description="Profiles that vLLM holds at a time; requests for more take turns."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto, float32, bfloat16 or float16."
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    store: UserPath = Field(
        default_factory=default_root,
        description="Directory of profiles.",
    )
    cache_dir: UserPath = Field(
        default_factory=lambda: user_cache_path("grainserve"), description="Directory for converted weights."
    )
    max_batch_size: int = Field(32, ge=1, description="Requests that run in one batch.")
    max_waiting: int = Field(256, ge=0, description="Requests that may wait; more are answered with 503.")
    max_context: int | None = Field(
        None, ge=LEAST_CONTEXT, description="Context in tokens; none: the model's."
    )
    prefill_chunk: int | None = Field(None, ge=1, description="Prompt tokens a step while others decode.")
    kv_cache_gb: float | None = Field(
        None, gt=0, description="Memory for the KV cache; none: a share of what is free."
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="Threads of the model on a CPU; none: one for each core."
    )
    api_key: Keys = Field((), description="Key that clients must send; repeatable. None: open.")
    api_key_file: KeyFile = Field((), description="File of such keys, one a line; lines with # are comments.")
    cors_origin: Origins = Field(
        (), description="Origin whose pages may ask, such as https://chat.example; repeatable; '*': any."
    )
    allow_template_kwargs: bool = Field(
        False, description="Let requests speak to the chat template, by chat_template_kwargs."
    )
    max_body_bytes: int | None = Field(
        None, ge=1, description="Largest request body; none: 4 MiB, or 20 MiB where the model takes images."
    )
    max_images: int = Field(16, ge=1, description="Images of a request.")
    max_image_pixels: int = Field(
        32_000_000, ge=1, description="Pixels of a request's images, over all of them."
    )
    image_host: Hosts = Field(
        (), description="Host that images are fetched from; repeatable. None: data URLs only."
    )
    max_strength: float = Field(
        4.0, ge=0, le=MOST_STRENGTH, description="Largest steering strength, either sign."
    )
    request_timeout: float = Field(
        600, gt=0, description="Seconds for a request, from its arrival to the end of its answer."
    )
    body_timeout: float = Field(120, gt=0, description="Seconds for a request's body to arrive.")
    idle_timeout: int = Field(
        75, ge=1, description="Seconds that a connection may be idle between two requests."
    )
    sse_keep_alive: float = Field(
        15, ge=0, description="Seconds of silence after which a stream sends a comment; 0: never."
    )
    grace: float = Field(
        30, ge=0, le=3600, description="Seconds that requests may go on once the server is told to stop."
    )
    exit_when_dead: bool = Field(
        False, description="End, with status 1, once the engine is dead; for what restarts a server."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error."
    )

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys that open the server; none: it is open."""
        return self.api_key + self.api_key_file


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Return the settings of the given flags, the environment and the file, or raise BadSettings."""
    refuse_unknown(os.environ)
    written = read_file(config) if config is not None else {}

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, written)

    try:
        return Layered(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise BadSettings("\n".join(complaints(error))) from None
    except SettingsError as error:
        raise BadSettings(str(error)) from None


def refuse_unknown(environment: Mapping[str, str]) -> None:
    """Refuse a variable that is nearly a setting: a misspelt key would leave the server open."""
    known = {PREFIX + name.upper() for name in [*Settings.model_fields, "config"]}
    for variable, value in environment.items():
        if OF_KUBERNETES.fullmatch(f"{variable}={value}"):
            raise BadSettings(f"{variable}: {LINKED}")
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            raise BadSettings(f"{variable}: there is no such setting{meant(variable.upper(), known)}")


def meant(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def read_file(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise BadSettings(f"cannot read the settings in {config}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"{config} is not TOML: {error}") from None


def complaints(error: ValidationError) -> list[str]:
    """Return a line for each bad setting; values stay out of it, one may be a key."""
    lines = []
    for detail in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            hint = meant(name.replace("-", "_"), Settings.model_fields)
            lines.append(f"{name}: there is no such setting{hint}")
        else:
            variable = f"GRAINSERVE_{str(detail['loc'][0]).upper()}" if detail["loc"] else ""
            said = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {said} (from a flag, {variable} or the file)")
    return lines
