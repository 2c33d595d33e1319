"""The `steering` field of a request."""

from typing import Annotated

from pydantic import Field, Tag

from server.wire.base import LIST, NUMBER, OBJECT, TEXT, Wire, one_of_kinds
from steering.plan import MOST_TERMS
from steering.types import Positions, Tokens

# As many as there may be choices.
MOST_STRENGTHS = 8
Strength = Annotated[
    Annotated[float, Tag(NUMBER)]
    | Annotated[list[float], Field(min_length=1, max_length=MOST_STRENGTHS), Tag(LIST)],
    one_of_kinds(f"a number, or a list of up to {MOST_STRENGTHS} numbers"),
]


Layer = Annotated[int, Field(ge=0, lt=2**31)]


class TermRequest(Wire):
    """One steering term as the caller writes it; null is the same as absent.

    strength: several ask for as many choices, one at each.
    """

    profile: str
    strength: Strength | None = None
    layers: Annotated[list[Layer], Field(min_length=1, max_length=1024, fail_fast=True)] | None = None
    positions: Positions | None = None
    tokens: Tokens | None = None


SteeringRequest = Annotated[
    Annotated[str, Tag(TEXT)]
    | Annotated[list[TermRequest], Field(max_length=MOST_TERMS), Tag(LIST)]
    | Annotated[TermRequest, Tag(OBJECT)],
    one_of_kinds("an object, a list of objects, or a string such as 'cheerful*0.8+formal'"),
]
