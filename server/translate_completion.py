"""From a completion request to the jobs that it becomes: each prompt's choices beside each other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from starlette.datastructures import Headers

from server.engine.protocol import GenerationJob, SamplingParams
from server.prompt_tokens import Echo, PromptReader, TokenPrompt, placed
from server.run import Run
from server.sampling_option import max_tokens_of, sampling_of, seeded_apart
from server.translate import Translator, refuse_stream_options, refuse_without_images, streamed_usage
from server.wire.completions import CompletionRequest
from steering.errors import InvalidRequest
from steering.types import SteeringPlan

MAX_TOKENS = 16  # OpenAI's default


@dataclass(frozen=True, slots=True)
class CompletionRun(Run):
    """The run of a completion request; echoes: for each job the prompt that it repeats, if it does."""

    echoes: tuple[Echo | None, ...] = ()


def completion_run(
    translator: Translator, request: CompletionRequest, headers: Headers, run_id: str, created: int
) -> CompletionRun:
    """Return the run that the request asks for; whatever is wrong with it is raised here."""
    check_combinations(request)
    plans = translator.plans_of(request.model, request.steering, headers, request.n)
    for plan in plans:
        refuse_without_images(plan, None)
    prompts = read_prompts(translator, request, len(plans))
    return CompletionRun(
        id=run_id,
        created=created,
        model=request.model,
        fingerprint=translator.fingerprint,
        jobs=tuple(jobs_of(translator, request, prompts, plans, run_id)),
        prompt_tokens=sum(len(prompt.tokens) for prompt in prompts),
        stream=bool(request.stream),
        echoes=tuple(prompt.echo for prompt in prompts for _ in plans),
        **streamed_usage(request.stream_options),
    )


def read_prompts(translator: Translator, request: CompletionRequest, choices: int) -> list[TokenPrompt]:
    prompts = list(placed(request.prompt))
    most = translator.most_choices
    if choices > most:
        raise InvalidRequest(f"this server runs {most} choices at most at once", "n")
    if len(prompts) * choices > most:
        raise InvalidRequest(
            f"there are {len(prompts)} prompts, and {choices} for each are {len(prompts) * choices} choices; "
            f"this server runs {most} at most at once",
            "prompt",
        )
    reader = PromptReader(translator.card, translator.most_characters)
    special, echo = request.add_special_tokens is not False, bool(request.echo)
    return [reader.read(place, prompt, special, echo) for place, prompt in prompts]


def jobs_of(
    translator: Translator,
    request: CompletionRequest,
    prompts: list[TokenPrompt],
    plans: list[SteeringPlan],
    run_id: str,
) -> Iterator[GenerationJob]:
    """Yield the prompts' jobs, prompt by prompt; a seed means the same for each prompt as for it alone."""
    common = sampling_of(request, 0, translator.card, logprobs=request.logprobs)
    for number, prompt in enumerate(prompts):
        sampling = sampling_for(common, request, prompt, translator.card.context_length)
        choices = zip(plans, seeded_apart(sampling, plans), strict=True)
        for index, (plan, each) in enumerate(choices):
            job_id = f"{run_id}-{number * len(plans) + index}"
            siblings = f"{run_id}-prompt-{number}"
            yield GenerationJob(
                job_id,
                prompt.tokens,
                each,
                plan,
                siblings=siblings,
                continues=True,
            )


def sampling_for(
    common: SamplingParams, request: CompletionRequest, prompt: TokenPrompt, context: int
) -> SamplingParams:
    """Return the sampling of one prompt's choices: as many tokens as are asked for, 16 where none are."""
    most = max_tokens_of(request.max_tokens, "max_tokens", len(prompt.tokens), context, prompt.place)
    if request.max_tokens is None:
        most = min(most, MAX_TOKENS)
    # An engine generates nothing only where the prompt's own log-probabilities are asked for.
    told = request.logprobs if most else request.logprobs or 0
    return replace(common, max_tokens=most, prompt_logprobs=told if request.echo else None)


def check_combinations(request: CompletionRequest) -> None:
    refuse_stream_options(request.stream_options, request.stream)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens: 0 is only for echo: true; ask for one token at least", "max_tokens")
    if request.best_of not in (None, 1, request.n or 1):
        raise InvalidRequest("choosing among more answers than n is not supported; leave it out", "best_of")
