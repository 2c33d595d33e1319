"""A profile's manifest: what was built, from what, for which model, and how well it works."""

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from steering.types import ModelIdentity, Positions, Tokens

MOST_DESCRIPTION = 2000
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def finite(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the values, which must be JSON that every client can read: NaN and infinity are not."""
    json.dumps(values, allow_nan=False)
    return values


FiniteJson = Annotated[dict[str, JsonValue], AfterValidator(finite)]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelRecord(Record):
    """The model that the vectors were built for; see steering.types.ModelIdentity."""

    id: str
    architecture: str
    layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    fingerprint: Sha256


class PairsRecord(Record):
    """The preference pairs: SHA-256 of the file, how many were used to build."""

    digest: Sha256
    count: int = Field(ge=1)


class Manifest(Record):
    """manifest.json; version and digest are filled in on publishing.

    operation, site: what strength 1.0 means, see docs/design.md. layers: those with a vector.
    calibration: how the dose was chosen. evidence: the headline of report.json.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(default=1, ge=1)
    description: str = Field(default="", max_length=MOST_DESCRIPTION)
    model: ModelRecord
    operation: Literal["add_renormalised"] = "add_renormalised"
    site: Literal["block_output"] = "block_output"
    layers: tuple[int, ...] = Field(min_length=1)
    positions: Positions = "all"
    tokens: Tokens = "all"
    method: str
    parameters: FiniteJson = Field(default_factory=dict)
    pairs: PairsRecord | None = None
    seed: int = 0
    libraries: dict[str, str] = Field(default_factory=dict)
    calibration: FiniteJson = Field(default_factory=dict)
    evidence: FiniteJson = Field(default_factory=dict)
    created: str = ""
    digest: Sha256 = "0" * 64

    @model_validator(mode="after")
    def layers_are_the_models(self) -> "Manifest":
        if tuple(sorted(set(self.layers))) != self.layers:
            raise ValueError("layers must be ascending and without repeats")
        if self.layers[0] < 0 or self.layers[-1] >= self.model.layers:
            raise ValueError(f"layers must lie in 0..{self.model.layers - 1}")
        return self


def incompatibility(manifest: Manifest, model: ModelIdentity) -> str | None:
    """Return why the profile does not fit the model, or None if it does."""
    built = manifest.model
    if (built.fingerprint, built.layers, built.hidden_size) == (
        model.fingerprint,
        model.layers,
        model.hidden_size,
    ):
        return None
    return (
        f"built for {built.id} ({built.architecture}, {built.layers} layers of {built.hidden_size}, "
        f"fingerprint {built.fingerprint[:12]}), but the model here is {model.id} ({model.architecture}, "
        f"{model.layers} layers of {model.hidden_size}, fingerprint {model.fingerprint[:12]})"
    )
