"""From a chat request to the jobs that it becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

from starlette.datastructures import Headers

from server.engine.grammar import Grammar, Grammars, UnsupportedSchema
from server.engine.protocol import GenerationJob, ModelCard, SamplingParams
from server.naming import ServedName
from server.prompts import (
    conversation_of,
    pictured_prompt,
    placed_images,
    prompt_of,
    refuse_hopeless,
    refuse_images,
    refuse_many,
)
from server.run import Run
from server.sampling_option import max_tokens_of, sampling_of, seeded_apart
from server.steering_option import (
    Resolver,
    agreed_plan,
    asked_in_body,
    asked_in_headers,
    asked_in_string,
    swept,
)
from server.template_option import TemplateOption
from server.tool_calls import PlainReader
from server.tooling import ToolFormat, Tooling, in_words, tooling_of, with_arguments_as_text
from server.wire.base import Wire
from server.wire.chat import ChatRequest, StreamOptions
from server.wire.steering import SteeringRequest
from server.wire.structure import JsonObjectFormat, JsonSchemaFormat, TextFormat
from steering.errors import InvalidRequest, InvalidSteering
from steering.images import ImageLimits
from steering.picturing import Prompt, Rendering
from steering.types import ModelIdentity, SteeringPlan
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
    grammars: Grammars
    tool_format: ToolFormat
    template_option: TemplateOption

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
        tooling = tooling_of(request, self.tool_format)
        grammar = self._grammar_of(request, tooling)
        plans = self.plans_of(request.model, request.steering, headers, request.n, grammar is not None)
        prompt, inputs = self.rendered(request, images, tooling)
        for plan in plans:
            refuse_without_images(plan, inputs)
        sampling = self._sampling_of(request, tooling, grammar, len(prompt))
        continues = bool(request.continue_final_message)
        spelled = tooling.spelled if tooling else {}
        jobs = tuple(
            GenerationJob(f"{run_id}-{index}", prompt, each, plan, inputs, run_id, continues, spelled)
            for index, (plan, each) in enumerate(zip(plans, seeded_apart(sampling, plans), strict=True))
        )
        return Run(
            id=run_id,
            created=created,
            model=request.model,
            fingerprint=self.fingerprint,
            jobs=jobs,
            prompt_tokens=len(prompt),
            reader=tooling.reader if tooling else PlainReader,
            stream=bool(request.stream),
            **streamed_usage(request.stream_options),
        )

    def _sampling_of(
        self, request: ChatRequest, tooling: Tooling | None, grammar: Grammar | None, prompt_tokens: int
    ) -> SamplingParams:
        most = max_tokens_of(
            *asked_tokens(request),
            prompt_tokens,
            self.card.context_length,
            beside="tools" if tooling else "",
        )
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        sampling = sampling_of(request, most, self.card, logprobs=logprobs)
        stops = tooling.stops if tooling else ()
        return replace(sampling, grammar=grammar, stop=(*sampling.stop, *stops))

    def rendered(
        self, request: ChatRequest, images: Mapping[str, str | bytes], tooling: Tooling | None
    ) -> Prompt:
        """Return the token ids and the images that the template makes of the request's messages and tools."""
        pictured = self.card.pictured
        conversation = conversation_of(request.messages, sees=pictured is not None)
        if not self.tool_format.native:
            conversation = in_words(conversation, tooling)
        elif self.tool_format.from_text:
            conversation = with_arguments_as_text(conversation)
        rendering = Rendering(
            opens=request.add_generation_prompt is not False,
            continues=bool(request.continue_final_message),
            tools=tooling.told if tooling and self.tool_format.native else None,
            arguments=self.template_option.arguments(request.chat_template_kwargs),
        )
        if pictured is None:
            return prompt_of(conversation, self.card.tokenizer, rendering, self.most_characters), None
        return pictured_prompt(conversation, pictured, self.limits, images, rendering, self.most_characters)

    def _grammar_of(self, request: ChatRequest, tooling: Tooling | None) -> Grammar | None:
        """Return what the whole answer must match, None where it is free."""
        asked = request.response_format
        shaped = asked is not None and not isinstance(asked, TextFormat)
        schema, place = tooling.schema if tooling else None, "tools"
        if shaped and tooling:
            raise InvalidRequest(
                "an answer cannot be both a call and of a format; send tool_choice 'none', or no format",
                "response_format",
            )
        if isinstance(asked, JsonObjectFormat):
            schema = {"type": "object"}
        if isinstance(asked, JsonSchemaFormat):
            schema, place = asked.json_schema.schema_, "response_format.json_schema.schema"
        if schema is None:
            return None
        for field in ("ignore_eos", "stop", "stop_token_ids", "continue_final_message"):
            if getattr(request, field):
                raise InvalidRequest(
                    f"an answer of a given shape begins and ends where that does; leave {field} out", field
                )
        try:
            return self.grammars.of_schema(schema, place)
        except UnsupportedSchema:
            for tool, parameters in (tooling.forced if tooling else {}).items():
                self.grammars.of_schema(parameters, tool)  # says which tool it is
            raise

    def _check_size(self, request: ChatRequest) -> None:
        if request.n is not None and request.n > self.most_choices:
            raise InvalidRequest(f"this server runs {self.most_choices} choices at most at once", "n")
        refuse_hopeless(request.messages, self.most_characters)

    def plans_of(
        self,
        model: str,
        steering: SteeringRequest | None,
        headers: Headers,
        n: int | None,
        constrained: bool = False,
    ) -> list[SteeringPlan]:
        """Return the plan of each choice: n times the same, or one for each strength of a sweep.

        constrained: the answers are kept to a grammar, where steering pauses unless told otherwise.
        """
        suffix = self.served.suffix_of(model)
        others = (None if suffix is None else asked_in_string(suffix, "model"), asked_in_headers(headers))
        steerings = swept(steering, n)
        if len(steerings) > self.most_choices:
            raise InvalidSteering(
                f"{len(steerings)} strengths make as many choices; this server runs {self.most_choices} at "
                "most at once",
                "steering.strength",
            )
        resolver = replace(self.resolver, model=self.identity, pausing=constrained)
        plans = [agreed_plan((asked_in_body(each), *others), resolver) for each in steerings]
        return plans if len(plans) > 1 else plans * (n or 1)

    @property
    def identity(self) -> ModelIdentity:
        """The model, under the name that callers know."""
        return replace(self.card.identity, id=self.served.name)

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
    refuse_bad_ending(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", "top_logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens) and (
        request.max_tokens != request.max_completion_tokens
    ):
        raise InvalidRequest(
            "max_tokens and max_completion_tokens disagree; send one of them", "max_completion_tokens"
        )


def refuse_bad_ending(request: ChatRequest) -> None:
    """Refuse what says both that an answer begins and that it goes on, or nothing to go on from."""
    if not request.continue_final_message:
        return
    if request.add_generation_prompt is not False:
        raise InvalidRequest(
            "continue_final_message needs add_generation_prompt: false", "add_generation_prompt"
        )
    if request.messages[-1].role != "assistant" or not request.messages[-1].text:
        raise InvalidRequest(
            "continue_final_message needs an assistant's message with text at the end", "messages"
        )


def asked_tokens(request: ChatRequest) -> tuple[int | None, str]:
    """Return how many tokens the request asks for, and the field that says so."""
    if request.max_tokens is not None:
        return request.max_tokens, "max_tokens"
    return request.max_completion_tokens, "max_completion_tokens"


def refuse_stream_options(options: Wire | None, stream: bool | None) -> None:
    if options is not None and not stream:
        raise InvalidRequest("stream_options is only for stream: true", "stream_options")


class StreamedUsage(TypedDict):
    include_usage: bool
    continuous_usage: bool


def streamed_usage(options: StreamOptions | None) -> StreamedUsage:
    """Return which usage a stream tells, as fields of a run."""
    return {
        "include_usage": bool(options and options.include_usage),
        "continuous_usage": bool(options and options.continuous_usage_stats),
    }
