"""From a chat request to the jobs that it becomes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from starlette.datastructures import Headers

from server.engine.protocol import GenerationJob, ModelCard, SamplingParams
from server.naming import ServedName
from server.prompts import (
    pictured_prompt,
    placed_images,
    prompt_of,
    refuse_hopeless,
    refuse_images,
    refuse_many,
)
from server.steering_option import (
    Resolver,
    agreed_plan,
    asked_in_body,
    asked_in_headers,
    asked_in_string,
)
from server.wire import ChatRequest
from steering.errors import ContextLengthExceeded, InvalidRequest, InvalidSteering
from steering.images import ImageLimits
from steering.picturing import Prompt
from steering.types import SteeringPlan
from steering.vision import ImageInputs

LEAST_TOP_P = 1e-6  # a top_p of 0 asks for the likeliest token, not for none


@dataclass(frozen=True, slots=True)
class Run:
    """One request on its way: its jobs, one a choice, and what every part of its answer repeats."""

    id: str
    created: int
    model: str
    fingerprint: str
    jobs: tuple[GenerationJob, ...]
    stream: bool
    include_usage: bool

    @property
    def plan(self) -> SteeringPlan:
        return self.jobs[0].plan

    @property
    def prompt_tokens(self) -> int:
        return len(self.jobs[0].prompt)


@dataclass(frozen=True, slots=True)
class Translator:
    """Everything about the server that a request's meaning depends on."""

    card: ModelCard
    served: ServedName
    resolver: Resolver
    most_choices: int
    most_characters: int
    limits: ImageLimits

    def images_of(self, request: ChatRequest) -> dict[str, str]:
        """Return the URLs of the request's images by their places in the body."""
        images = dict(placed_images(request.messages))
        if self.card.pictured is None:
            refuse_images(images)
        refuse_many(list(images), self.limits)
        return images

    def run_of(
        self,
        request: ChatRequest,
        headers: Headers,
        images: Mapping[str, str | bytes],
        run_id: str,
        created: int,
    ) -> Run:
        """Return the run that the request asks for; whatever is wrong with it is raised here.

        images: those of images_of(request), the ones that were fetched as bytes.
        """
        check_combinations(request)
        self._check_size(request)
        plan = self.plan_of(request, headers)
        prompt, inputs = self._prompt_of(request, images)
        refuse_without_images(plan, inputs)
        sampling = sampling_of(request, len(prompt), self.card)
        jobs = tuple(
            GenerationJob(f"{run_id}-{index}", prompt, reseeded(sampling, index), plan, inputs)
            for index in range(request.n or 1)
        )
        return Run(
            id=run_id,
            created=created,
            model=request.model,
            fingerprint=f"fp_{self.card.identity.fingerprint[:12]}",
            jobs=jobs,
            stream=bool(request.stream),
            include_usage=bool(request.stream_options and request.stream_options.include_usage),
        )

    def _prompt_of(self, request: ChatRequest, images: Mapping[str, str | bytes]) -> Prompt:
        if self.card.pictured is None:
            return prompt_of(request.messages, self.card.tokenizer), None
        return pictured_prompt(request.messages, self.card.pictured, self.limits, images)

    def _check_size(self, request: ChatRequest) -> None:
        if request.n is not None and request.n > self.most_choices:
            raise InvalidRequest(f"this server runs {self.most_choices} choices at most at once", "n")
        refuse_hopeless(request.messages, self.most_characters)

    def plan_of(self, request: ChatRequest, headers: Headers) -> SteeringPlan:
        suffix = self.served.suffix_of(request.model)
        sources = (
            asked_in_body(request.steering),
            None if suffix is None else asked_in_string(suffix, "model"),
            asked_in_headers(headers),
        )
        return agreed_plan(sources, self.resolver)


def refuse_without_images(plan: SteeringPlan, images: ImageInputs | None) -> None:
    """Refuse to steer image tokens where there are none, rather than run without what was asked for."""
    for term in plan.terms:
        if term.tokens == "image" and term.strength and images is None:
            raise InvalidSteering(
                f"profile '{term.vectors.name}' is to steer image tokens, but the messages hold no image",
                "steering",
            )


def check_combinations(request: ChatRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options is only for stream: true", "stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", "top_logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens) and (
        request.max_tokens != request.max_completion_tokens
    ):
        raise InvalidRequest(
            "max_tokens and max_completion_tokens disagree; send one of them", "max_completion_tokens"
        )


def sampling_of(request: ChatRequest, prompt_tokens: int, card: ModelCard) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens_of(request, prompt_tokens, card.context_length),
        temperature=default(request.temperature, 1.0),
        top_p=max(LEAST_TOP_P, default(request.top_p, 1.0)),
        top_k=max(0, request.top_k or 0),
        min_p=default(request.min_p, 0.0),
        repetition_penalty=default(request.repetition_penalty, 1.0),
        presence_penalty=default(request.presence_penalty, 0.0),
        frequency_penalty=default(request.frequency_penalty, 0.0),
        logit_bias=logit_bias_of(request, card.vocabulary_size),
        seed=request.seed,
        stop=stop_of(request),
        stop_token_ids=stop_token_ids_of(request, card.vocabulary_size),
        ignore_eos=bool(request.ignore_eos),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def default(value: float | None, absent: float) -> float:
    return absent if value is None else value


def max_tokens_of(request: ChatRequest, prompt_tokens: int, context_length: int) -> int:
    """Return how many tokens may be generated: what was asked for, else the rest of the context."""
    room = context_length - prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"the messages are {prompt_tokens} tokens, but this model's context is {context_length} tokens, "
            "the completion included; shorten the messages",
            "messages",
        )
    field = "max_tokens" if request.max_tokens is not None else "max_completion_tokens"
    asked = getattr(request, field)
    if asked is None:
        return room
    if asked > room:
        raise ContextLengthExceeded(
            f"the messages are {prompt_tokens} tokens and {field} is {asked}, together "
            f"{prompt_tokens + asked}, but this model's context is {context_length} tokens; "
            f"{field} can be {room} at most here",
            field,
        )
    return int(asked)


def stop_of(request: ChatRequest) -> tuple[str, ...]:
    if request.stop is None:
        return ()
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def logit_bias_of(request: ChatRequest, vocabulary_size: int) -> dict[int, float]:
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    check_tokens(bias, vocabulary_size, "logit_bias")
    return bias


def stop_token_ids_of(request: ChatRequest, vocabulary_size: int) -> tuple[int, ...]:
    tokens = dict.fromkeys(request.stop_token_ids or ())
    check_tokens(tokens, vocabulary_size, "stop_token_ids")
    return tuple(tokens)


def check_tokens(tokens: Mapping[int, object], vocabulary_size: int, param: str) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary_size:
            raise InvalidRequest(
                f"{str(token)[:40]} is no token of this model; ids go from 0 to {vocabulary_size - 1}", param
            )


def reseeded(sampling: SamplingParams, index: int) -> SamplingParams:
    """Return the sampling of one choice: a seed of its own, unlike those next to the caller's."""
    if sampling.seed is None or index == 0:
        return sampling
    digest = hashlib.blake2b(f"{sampling.seed}/{index}".encode(), digest_size=8).digest()
    return replace(sampling, seed=int.from_bytes(digest, "little", signed=True))
