"""From a chat request to the jobs that it becomes."""

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers

from server.engine.protocol import GenerationJob, ModelCard
from server.naming import ServedName
from server.prompts import (
    pictured_prompt,
    placed_images,
    prompt_of,
    refuse_hopeless,
    refuse_images,
    refuse_many,
)
from server.run import Run
from server.sampling_option import max_tokens_of, reseeded, sampling_of
from server.steering_option import (
    Resolver,
    agreed_plan,
    asked_in_body,
    asked_in_headers,
    asked_in_string,
    swept,
)
from server.wire.chat import ChatRequest, StreamOptions
from server.wire.steering import SteeringRequest
from steering.errors import InvalidRequest, InvalidSteering
from steering.images import ImageLimits
from steering.picturing import Prompt
from steering.types import SteeringPlan
from steering.vision import ImageInputs


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
        plans = self.plans_of(request.model, request.steering, headers, request.n)
        prompt, inputs = self._prompt_of(request, images)
        refuse_without_images(plans[0], inputs)
        sampling = sampling_of(
            request,
            max_tokens_of(*asked_tokens(request), len(prompt), self.card.context_length),
            self.card,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
        jobs = tuple(
            GenerationJob(f"{run_id}-{index}", prompt, reseeded(sampling, index), plan, inputs, run_id)
            for index, plan in enumerate(plans)
        )
        return Run(
            id=run_id,
            created=created,
            model=request.model,
            fingerprint=self.fingerprint,
            jobs=jobs,
            prompt_tokens=len(prompt),
            stream=bool(request.stream),
            **streamed_usage(request.stream_options),
        )

    def _prompt_of(self, request: ChatRequest, images: Mapping[str, str | bytes]) -> Prompt:
        if self.card.pictured is None:
            return prompt_of(request.messages, self.card.tokenizer), None
        return pictured_prompt(request.messages, self.card.pictured, self.limits, images)

    def _check_size(self, request: ChatRequest) -> None:
        if request.n is not None and request.n > self.most_choices:
            raise InvalidRequest(f"this server runs {self.most_choices} choices at most at once", "n")
        refuse_hopeless(request.messages, self.most_characters)

    def plans_of(
        self, model: str, steering: SteeringRequest | None, headers: Headers, n: int | None
    ) -> list[SteeringPlan]:
        """Return the plan of each choice: n times the same, or one for each strength of a sweep."""
        suffix = self.served.suffix_of(model)
        others = (None if suffix is None else asked_in_string(suffix, "model"), asked_in_headers(headers))
        steerings = swept(steering, n)
        plans = [agreed_plan((asked_in_body(each), *others), self.resolver) for each in steerings]
        return plans if len(plans) > 1 else plans * (n or 1)

    @property
    def fingerprint(self) -> str:
        return f"fp_{self.card.identity.fingerprint[:12]}"


def refuse_without_images(plan: SteeringPlan, images: ImageInputs | None) -> None:
    """Refuse to steer image tokens where there are none, rather than run without what was asked for."""
    for term in plan.terms:
        if term.tokens == "image" and term.strength and images is None:
            raise InvalidSteering(
                f"profile '{term.vectors.name}' is to steer image tokens, but the messages hold no image",
                "steering",
            )


def check_combinations(request: ChatRequest) -> None:
    refuse_stream_options(request.stream_options, request.stream)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", "top_logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens) and (
        request.max_tokens != request.max_completion_tokens
    ):
        raise InvalidRequest(
            "max_tokens and max_completion_tokens disagree; send one of them", "max_completion_tokens"
        )


def asked_tokens(request: ChatRequest) -> tuple[int | None, str]:
    """Return how many tokens the request asks for, and the field that says so."""
    if request.max_tokens is not None:
        return request.max_tokens, "max_tokens"
    return request.max_completion_tokens, "max_completion_tokens"


def refuse_stream_options(options: StreamOptions | None, stream: bool | None) -> None:
    if options is not None and not stream:
        raise InvalidRequest("stream_options is only for stream: true", "stream_options")


def streamed_usage(options: StreamOptions | None) -> dict[str, bool]:
    """Return which usage a stream tells, as fields of a run; continuous usage has a last one too."""
    continuous = bool(options and options.continuous_usage_stats)
    return {
        "include_usage": continuous or bool(options and options.include_usage),
        "continuous_usage": continuous,
    }
