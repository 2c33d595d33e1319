"""From a request's steering, wherever it stands, to a plan."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product

from starlette.datastructures import Headers

from server.steering_syntax import (
    WrittenTerm,
    parse_profile,
    parse_steering,
    parse_strength,
    written,
)
from server.wire.steering import SteeringRequest, TermRequest
from steering.errors import InvalidRequest, InvalidSteering, ProfileIncompatible, ProfileNotFound
from steering.plan import MOST_TERMS, applies
from steering.types import ModelIdentity, Positions, SteeringPlan, SteeringTerm, Tokens
from vector_store.manifest import incompatibility
from vector_store.names import quoted
from vector_store.store import Profile, VectorStore

PROFILE_HEADER = "X-Steering-Profile"
STRENGTH_HEADER = "X-Steering-Strength"
HEADERS = {name.lower(): name for name in (PROFILE_HEADER, STRENGTH_HEADER)}
LEAST_STRENGTH = 1e-30
# The kinds of token that terms tell apart.
KINDS: tuple[tuple[Positions, Tokens], ...] = (
    ("prompt", "text"),
    ("prompt", "image"),
    ("generated", "text"),
)


@dataclass(frozen=True, slots=True)
class AskedTerm:
    """One term as asked for; None where nothing was said.

    place: the path that errors name; keyed: whether the term has keys to be named after it.
    """

    place: str
    keyed: bool
    name: str
    version: int | None
    strength: float | None
    layers: tuple[int, ...] | None = None
    positions: Positions | None = None
    tokens: Tokens | None = None

    def at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.keyed else self.place


@dataclass(frozen=True, slots=True)
class Resolver:
    """Turns asked terms into plan terms: the store, the model that they must fit, and the cap on strength.

    sees: whether the model takes images. pausing: whether what is generated is kept to a grammar, where only
    a term that says its positions steers.
    """

    store: VectorStore
    model: ModelIdentity
    max_strength: float
    sees: bool = False
    pausing: bool = False

    def plan(self, terms: Sequence[AskedTerm]) -> SteeringPlan:
        plan = SteeringPlan(tuple(self.term(term) for term in terms))
        self._check_sums(plan, place_of(terms))
        return plan

    def _check_sums(self, plan: SteeringPlan, place: str) -> None:
        """Refuse one profile named several times, together beyond the cap at some layer and position."""
        sums: dict[tuple[str, int, object], float] = defaultdict(float)
        for term in plan.terms:
            for layer, kind in product(term.layers, KINDS):
                if applies(term, *kind):
                    sums[term.vectors.digest, layer, kind] += term.strength
        beyond = max(map(abs, sums.values()), default=0.0)
        if beyond > self.max_strength * (1 + 1e-9):
            raise InvalidSteering(
                f"one profile's strengths add up to {beyond!r}; this server's cap is {self.max_strength:g}",
                place,
            )

    def term(self, asked: AskedTerm) -> SteeringTerm:
        strength = self._strength(asked)
        profile = self._profile(asked)
        positions = asked.positions or self._own_positions(asked, profile)
        tokens = asked.tokens or profile.vectors.tokens
        if (positions, tokens) == ("generated", "image"):
            raise InvalidSteering("no generated token is a piece of an image", asked.at("tokens"))
        layers = layers_of(asked, profile)
        if tokens == "image" and layers == (self.model.layers - 1,):
            raise InvalidSteering(
                f"profile '{asked.name}' steers the model's last block only, and nothing reads what that "
                "does to image tokens; steer 'all' or 'text'",
                asked.at("tokens"),
            )
        return SteeringTerm(profile.vectors, strength, layers, positions, tokens)

    def _own_positions(self, asked: AskedTerm, profile: Profile) -> Positions:
        own = profile.vectors.positions
        if self.pausing and own == "generated":
            raise InvalidSteering(
                f"profile '{asked.name}' steers what is generated, and steering pauses in answers of a given "
                'shape; say "positions": "generated" to steer there',
                asked.at("positions"),
            )
        return "prompt" if self.pausing else own

    def _strength(self, asked: AskedTerm) -> float:
        strength = 1.0 if asked.strength is None else asked.strength
        if abs(strength) > self.max_strength:
            raise InvalidSteering(
                f"strength {strength!r} of profile '{asked.name}' is beyond this server's cap: "
                f"it may lie from {-self.max_strength:g} to {self.max_strength:g}",
                asked.at("strength"),
            )
        # A strength that float32 cannot hold is none; so is minus zero.
        return strength if abs(strength) > LEAST_STRENGTH else 0.0

    def _profile(self, asked: AskedTerm) -> Profile:
        try:
            profile = self.store.get(asked.name, asked.version)
        except ProfileNotFound as error:
            raise ProfileNotFound(error.message, asked.at("profile")) from error
        reason = incompatibility(profile.manifest, self.model)
        if reason is not None:
            raise ProfileIncompatible(
                f"profile '{asked.name}' does not fit the model: {reason}", asked.at("profile")
            )
        if not self.sees and "image" in (asked.tokens, profile.manifest.tokens):
            raise InvalidSteering(
                "this model takes no images: it has no image tokens to steer", asked.at("tokens")
            )
        return profile


def layers_of(asked: AskedTerm, profile: Profile) -> tuple[int, ...]:
    """Return the term's layers in order: those asked for, else all that the profile has."""
    if asked.layers is None:
        return profile.vectors.layers
    if len(set(asked.layers)) != len(asked.layers):
        raise InvalidSteering("layers are repeated; name each once", asked.at("layers"))
    missing = sorted(set(asked.layers) - set(profile.vectors.layers))
    if missing:
        raise InvalidSteering(
            f"profile '{asked.name}' has no vector at {some(missing)}; it has {some(profile.vectors.layers)}",
            asked.at("layers"),
        )
    return tuple(sorted(asked.layers))


def some(layers: Sequence[int]) -> str:
    shown = ", ".join(str(layer) for layer in layers[:64])
    return f"layer{'s' if len(layers) > 1 else ''} {shown}{', …' if len(layers) > 64 else ''}"


def asked_in_body(steering: SteeringRequest | None) -> list[AskedTerm] | None:
    """Return the terms of the body's `steering`, None where it is absent."""
    if steering is None:
        return None
    if isinstance(steering, str):
        return asked_in_string(steering, "steering")
    if isinstance(steering, TermRequest):
        return [asked_in_object(steering, "steering")]
    return [asked_in_object(term, f"steering[{index}]") for index, term in enumerate(steering)]


def swept(steering: SteeringRequest | None, n: int | None) -> list[SteeringRequest | None]:
    """Return the steering of each choice: one for each value where a term's strength is a list."""
    if steering is None or isinstance(steering, str):
        return [steering]
    terms = [steering] if isinstance(steering, TermRequest) else steering
    varied = [(term, term.strength) for term in terms if isinstance(term.strength, list)]
    if not varied:
        return [steering]
    if len(varied) > 1:
        raise InvalidSteering("one term's strength may be a list; give the others one each", "steering")
    if n not in (None, 1):
        raise InvalidRequest("a list of strengths makes a choice of each; leave n out", "n")
    ((term, values),) = varied
    return [with_strength(steering, term, value) for value in values]


def with_strength(
    steering: list[TermRequest] | TermRequest, varied: TermRequest, value: float
) -> SteeringRequest:
    chosen = varied.model_copy(update={"strength": value})
    if isinstance(steering, list):
        return [chosen if term is varied else term for term in steering]
    return chosen


def asked_in_object(term: TermRequest, place: str) -> AskedTerm:
    name, version = parse_profile(term.profile, f"{place}.profile")
    assert not isinstance(term.strength, list)
    layers = None if term.layers is None else tuple(term.layers)
    return AskedTerm(place, True, name, version, term.strength, layers, term.positions, term.tokens)


def asked_in_string(text: str, place: str) -> list[AskedTerm]:
    if text.count("+") >= MOST_TERMS:
        raise InvalidSteering(f"there are too many steering terms; {MOST_TERMS} is the most", place)
    terms = parse_steering(text, place)
    return [AskedTerm(place, False, term.name, term.version, term.strength) for term in terms]


def asked_in_headers(headers: Headers) -> list[AskedTerm] | None:
    """Return the terms of the steering headers, None where there are none."""
    refuse_unknown_headers(headers)
    profile, strength = header(headers, PROFILE_HEADER), header(headers, STRENGTH_HEADER)
    if profile is None and strength is None:
        return None
    if profile is None:
        raise InvalidSteering(f"{STRENGTH_HEADER} needs {PROFILE_HEADER} beside it", STRENGTH_HEADER)
    terms = asked_in_string(profile, PROFILE_HEADER)
    if strength is None:
        return terms
    if len(terms) > 1 or terms[0].strength is not None:
        raise InvalidSteering(
            f"{STRENGTH_HEADER} is the strength of one profile named without a strength, "
            f"but {PROFILE_HEADER} is {quoted(profile)}",
            STRENGTH_HEADER,
        )
    only = terms[0]
    return [
        AskedTerm(STRENGTH_HEADER, False, only.name, only.version, parse_strength(strength, STRENGTH_HEADER))
    ]


def refuse_unknown_headers(headers: Headers) -> None:
    """Refuse a header that is nearly one of ours, rather than run without what it asked for."""
    for name in headers:
        if "steering" in name and name not in HEADERS:
            near = get_close_matches(name, HEADERS, n=1, cutoff=0.0)[0]
            raise InvalidSteering(
                f"there is no header {quoted(name)}; did you mean {HEADERS[near]}?", name[:200]
            )


def header(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    if len(values) > 1:
        raise InvalidSteering(f"{name} is sent {len(values)} times; send it once", name)
    return values[0] if values else None


def agreed_plan(sources: Sequence[Sequence[AskedTerm] | None], resolver: Resolver) -> SteeringPlan:
    """Return the plan that all present sources ask for; two that disagree are an error that names both."""
    plans = [(terms, resolver.plan(terms)) for terms in sources if terms is not None]
    if not plans:
        return SteeringPlan()
    (first_terms, first), *others = plans
    for terms, plan in others:
        if meaning(plan) != meaning(first):
            raise InvalidSteering(
                f"{said(first_terms)} and {said(terms)} disagree; say the steering once",
                place_of(terms),
            )
    return first


def meaning(plan: SteeringPlan) -> list[tuple[object, ...]]:
    """Return what two plans must have in common to be the same; the order of terms is not in it."""
    return sorted(
        (t.vectors.name, t.vectors.version, t.strength, t.layers, t.positions, t.tokens) for t in plan.terms
    )


def said(terms: Sequence[AskedTerm]) -> str:
    text = written([WrittenTerm(term.name, term.version, term.strength) for term in terms])
    return f"{place_of(terms)} ({quoted(text) if text else 'none'})"


def place_of(terms: Sequence[AskedTerm]) -> str:
    """Return the source that the terms came from; only the body can hold an empty list."""
    return terms[0].place.split("[")[0] if terms else "steering"
