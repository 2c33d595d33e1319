"""Stock vLLM behind the Engine protocol: its scheduler, kernels and machines; our steering and our text."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from server.engine.protocol import (
    EngineHealth,
    EngineState,
    GenerationJob,
    ModelCard,
    PositionLogprobs,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from server.engine.residents import Residents
from server.engine.tickets import Result, Results
from server.engine.token_bytes import token_bytes
from server.engine.vllm_causes import Causes
from server.engine.writing import Writing, final_tokens
from steering.checkpoint import Checkpoint
from steering.errors import (
    ContextLengthExceeded,
    EngineOverloaded,
    EngineUnavailable,
    GenerationFailed,
    ModelUnavailable,
    SteeringError,
    quotable,
)
from steering.picturing import Pictured, grey_prompt
from steering.plan import BatchRow, HeldPlan, HeldTerm, steered_tokens
from steering.processor import image_token_of
from steering.types import SteeringPlan, SteeringVectors
from steering.vllm.plans import loadable, packed_request, packed_vectors, prompt_salt
from steering.vllm.plugin import CAUSES, CHILD

logger = logging.getLogger(__name__)
RETRY_AFTER = 2
LAST_SECONDS = 5.0  # for vLLM's processes to end
LONG_PROMPT = 32  # tokens from which choices of one prompt wait for the first one's cache
WARM_UP = GenerationJob("warm-up", (0,) * 8, SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True))


@dataclass(frozen=True, slots=True)
class VllmLimits:
    """slots: requests at a time. waiting: those that may wait beside. vectors: profiles loaded at a time."""

    slots: int
    waiting: int
    vectors: int


class VllmEngine:
    """Serves jobs on vLLM; see server.engine.protocol.Engine.

    config: vLLM's, with the steering worker in it. Its processes start with `start` and end with `close`.
    """

    def __init__(self, checkpoint: Checkpoint, config: Any, limits: VllmLimits) -> None:
        self._checkpoint = checkpoint
        self.config = config
        self.limits = limits
        self._llm: Any = None
        self._state: EngineState = "starting"
        self._reason: str | None = None
        self._residents = Residents(limits.vectors, self._load, self._evict)
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = 0
        self._leading: dict[str, asyncio.Event] = {}
        self._by_graphs = False
        self._verifying: asyncio.Task[None] | None = None
        self._causes = Causes()

        self.card = self._describe_model()

    def _describe_model(self) -> ModelCard:
        parts, model = self._checkpoint.parts, self.config.model_config
        image_token = image_token_of(parts.config)
        pictured = None
        if parts.processor is not None and image_token is not None and model.is_multimodal_model:
            pictured = Pictured(parts.processor, image_token, keeps=True)
        return ModelCard(
            identity=self._checkpoint.identity,
            tokenizer=parts.tokenizer,
            context_length=model.max_model_len,
            vocabulary_size=int(parts.config.get_text_config().vocab_size),
            device=str(self.config.device_config.device_type),
            dtype=str(model.dtype).removeprefix("torch."),
            pictured=pictured,
            end_tokens=tuple(sorted(self._checkpoint.end_tokens)),
        )

    async def start(self) -> None:
        """Start vLLM's processes, see that each block is steered, and send one small job through."""
        from vllm.v1.engine.async_llm import AsyncLLM

        logger.info("vLLM loads the model; where it is compiled, that may take minutes")
        os.environ[CHILD] = str(os.getpid())
        os.environ[CAUSES] = str(self._causes.path)
        try:
            self._llm = AsyncLLM.from_vllm_config(self.config, disable_log_stats=False)
            workers = await self.describe()
        except Exception as error:
            reason = f"vLLM could not start: {self._causes.of(error)}"
            self._fail(reason)
            await self.close()
            raise ModelUnavailable(reason) from error
        try:
            self._see_that_all_are_steered(workers)
        except ModelUnavailable:
            await self.close()
            raise
        self._state = "ready"
        async for _ in self.stream(WARM_UP):
            pass
        if self.card.pictured is not None:
            await self._try_images(self.card.pictured)

    async def _try_images(self, pictured: Pictured) -> None:
        """Send a picture through, so that a family that cannot be served says so at the start."""
        try:
            prompt, images = grey_prompt(pictured)
            async for _ in self.stream(
                replace(WARM_UP, id="warm-up with a picture", prompt=prompt, images=images)
            ):
                pass
        except Exception as error:
            await self.close()
            raise ModelUnavailable(f"this model cannot be served with images on vLLM: {error}") from error

    async def describe(self) -> list[dict[str, Any]]:
        """Return what each worker says of its steering; see steering.vllm.worker."""
        described: list[dict[str, Any]] = await self._llm.collective_rpc("grainserve_describe")
        return described

    def _see_that_all_are_steered(self, workers: list[dict[str, Any]]) -> None:
        identity = self._checkpoint.identity
        refusals = [worker["refused"] for worker in workers if "refused" in worker]
        if refusals:
            raise ModelUnavailable(refusals[0])
        there = {layer for worker in workers for layer in worker["layers"]}
        sizes = {worker["hidden_size"] for worker in workers}
        if there != set(range(identity.layers)) or sizes != {identity.hidden_size}:
            raise ModelUnavailable(
                f"vLLM's blocks are not the model's: {len(there)} of {identity.layers} are steered, of sizes "
                f"{sorted(sizes)} where {identity.hidden_size} was expected"
            )
        self._by_graphs = any(worker["graphs"] for worker in workers)

    async def close(self) -> None:
        """End what runs with EngineUnavailable, and vLLM's processes."""
        if self._state != "dead":
            self._state = "draining"
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel("the server is shutting down")
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._llm is not None:
            if self._llm.output_handler is not None:
                self._llm.output_handler.cancel()
            await asyncio.to_thread(self._llm.shutdown, LAST_SECONDS)
        self._causes.remove()

    @property
    def registry(self) -> CollectorRegistry:
        """What vLLM counts, and how this process is."""
        return REGISTRY

    def health(self) -> EngineHealth:
        if self._state == "ready" and self._llm.errored:
            why = self._causes.written()
            self._fail("vLLM's engine process ended" + (f": {why}" if why else ""))
        return EngineHealth(self._state, self._reason, self._begun, len(self._tasks) - self._begun)

    def stream(self, job: GenerationJob) -> AsyncGenerator[TokenEvent, None]:
        self._refuse_excess()
        results: asyncio.Queue[Result] = asyncio.Queue()
        task = asyncio.get_running_loop().create_task(self._serve(job, results))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Results(results, lambda: cancel(task))

    def _refuse_excess(self) -> None:
        if self.health().state != "ready":
            why = f": {self._reason}" if self._reason else ""
            again = None if self._state == "dead" else RETRY_AFTER
            raise EngineUnavailable(f"the engine is {self._state}{why}", again)
        if len(self._tasks) >= self.limits.slots + self.limits.waiting:
            raise EngineOverloaded(
                f"{self.limits.waiting} requests are waiting already; try again later", RETRY_AFTER
            )

    async def _serve(self, job: GenerationJob, results: asyncio.Queue[Result]) -> None:
        """Put the job's events into the queue, and at last how it ended."""
        try:
            vectors = {each.digest: each for each in map(loadable, moving_terms(job.plan))}
            async with self._residents.holding(list(vectors.values())):
                await self._follow(job)
                try:
                    await self._generate(job, results)
                finally:
                    self._lead(job)
        except SteeringError as error:
            results.put_nowait(error)
        except asyncio.CancelledError:
            results.put_nowait(EngineUnavailable("the server is shutting down", RETRY_AFTER))
            raise
        except Exception as error:
            results.put_nowait(self._explained(error))

    async def _generate(self, job: GenerationJob, results: asyncio.Queue[Result]) -> None:
        from vllm.inputs.engine import tokens_input

        if len(job.prompt) >= self.card.context_length:
            raise ContextLengthExceeded(
                f"the prompt's {len(job.prompt)} tokens fill the context of {self.card.context_length}; "
                "leave room for one more, which vLLM wants also where none is generated"
            )

        prompt: Any = tokens_input(list(job.prompt), cache_salt=prompt_salt(job.plan))
        if job.images is not None:
            prompt = {"prompt": job.images.text, "multi_modal_data": {"image": list(job.images.pictures)}}
            prompt |= {"cache_salt": salt} if (salt := prompt_salt(job.plan)) else {}
        asked = sampling_params(job, self._checkpoint.end_tokens)
        answer = Answer(job, self._checkpoint.parts.tokenizer, self._checkpoint.end_tokens)
        as_it_is = {"add_special_tokens": False} if job.images else None
        outputs = self._llm.generate(prompt, asked, job.id, tokenization_kwargs=as_it_is)
        begun = False
        try:
            async for output in outputs:
                if not begun:
                    begun = True
                    self._begun += 1
                    refuse_other_prompt(output.prompt_token_ids, job)
                    self._lead(job)
                event = answer.take(output)
                if event.finish and self._by_graphs and moving_terms(job.plan):
                    await self._verify()
                results.put_nowait(event)
                if event.finish:
                    return
            raise GenerationFailed("vLLM ended the answer before it was complete")
        finally:
            self._begun -= begun
            await outputs.aclose()

    async def _follow(self, job: GenerationJob) -> None:
        """Let the first of several choices of one prompt compute it; the others find it in the cache."""
        if job.siblings is None or len(job.prompt) < LONG_PROMPT:
            return
        key = f"{job.siblings}/{prompt_salt(job.plan)}"
        if key in self._leading:
            await self._leading[key].wait()
        else:
            self._leading[key] = asyncio.Event()

    def _lead(self, job: GenerationJob) -> None:
        leading = self._leading.pop(f"{job.siblings}/{prompt_salt(job.plan)}", None)
        if leading is not None:
            leading.set()

    async def _verify(self) -> None:
        """Ask the workers whether all steering was done; those who ask at a time share an answer."""
        if self._verifying is None or self._verifying.done():
            self._verifying = asyncio.create_task(self._llm.collective_rpc("grainserve_verify"))
        await asyncio.shield(self._verifying)

    async def _load(self, vectors: SteeringVectors) -> None:
        await self._llm.collective_rpc("grainserve_load", args=(vectors.digest, packed_vectors(vectors)))

    async def _evict(self, digest: str) -> None:
        await self._llm.collective_rpc("grainserve_evict", args=(digest,))

    def _fail(self, reason: str) -> None:
        self._state, self._reason = "dead", quotable(reason)

    def _explained(self, error: Exception) -> SteeringError:
        if self._llm.errored:
            self._fail(f"vLLM's engine process ended: {self._causes.of(error)}")
            return EngineUnavailable(f"the engine stopped: {self._reason}", None)
        logger.error("a request failed in vLLM", exc_info=error)
        return GenerationFailed(f"generation failed ({type(error).__name__})")


class Answer:
    """A job's events, made of what vLLM says of its tokens."""

    def __init__(self, job: GenerationJob, tokenizer: Any, end_tokens: frozenset[int]) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._writing = Writing(job, tokenizer, end_tokens)
        self._matcher = job.sampling.grammar.matcher() if job.sampling.grammar else None
        self._count = 0
        self._told_prompt = False

    def take(self, output: Any) -> TokenEvent:
        """Return what a RequestOutput with new tokens makes certain; tokens beyond the end are left out."""
        choice, cached = output.outputs[0], output.num_cached_tokens or 0
        prompt_logprobs = self._prompt_logprobs(output)
        if not self._job.sampling.max_tokens:
            return TokenEvent("", 0, (), prompt_logprobs, self._steered(), cached, "length")
        said, logprobs, finish = "", [], None
        for place, token in enumerate(choice.token_ids):
            self._count += 1
            text, finish = self._writing.push(token, self._complete_with(token))
            said += text
            if self._job.sampling.logprobs is not None:
                logprobs.append(self._position(token, choice.logprobs[place], self._job.sampling.logprobs))
            if finish:
                break
        return TokenEvent(
            said, self._count, tuple(logprobs), prompt_logprobs, self._steered(), cached, finish
        )

    def _complete_with(self, token: int) -> bool:
        if self._matcher is None:
            return False
        if token in self._writing.final:
            self._matcher.end()
            return False
        self._matcher.take(token)
        return self._matcher.complete

    def _prompt_logprobs(self, output: Any) -> tuple[PositionLogprobs, ...]:
        asked = self._job.sampling.prompt_logprobs
        if asked is None or self._told_prompt or output.prompt_logprobs is None:
            return ()
        self._told_prompt = True
        following = zip(self._job.prompt[1:], output.prompt_logprobs[1:], strict=True)
        return tuple(self._position(token, found, asked) for token, found in following)

    def _position(self, token: int, found: Any, count: int) -> PositionLogprobs:
        """found: token -> vLLM's Logprob, of the chosen one and of the likeliest."""
        likeliest = sorted(found.items(), key=lambda item: item[1].rank)[:count]
        return PositionLogprobs(
            self._told(token, found[token]), tuple(self._told(each, value) for each, value in likeliest)
        )

    def _told(self, token: int, value: Any) -> TokenLogprob:
        return TokenLogprob(*token_bytes(self._tokenizer, token), value.logprob)

    def _steered(self) -> tuple[int, ...]:
        """Return how many tokens each term has moved: all that it applies to and that were computed.

        A worker that does not hold a request's vectors, or whose blocks did not steer what they were told
        to, ends the engine.
        """
        terms = enumerate(self._job.plan.terms)
        held = HeldPlan(self._job.plan, tuple(HeldTerm(i, term, 0) for i, term in terms if term.strength))
        length = len(self._job.prompt)
        computed = length + max(0, self._count - 1)
        images = self._job.images.spans if self._job.images else ()
        return steered_tokens(BatchRow(held, 0, 0, computed, length, images))


def refuse_other_prompt(found: Sequence[int] | None, job: GenerationJob) -> None:
    """Refuse an answer to another prompt: those with images vLLM makes itself, by the family's processor."""
    if job.images is not None and tuple(found or ()) != job.prompt:
        raise GenerationFailed("vLLM makes another prompt of these images than the model's own processor")


def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def moving_terms(plan: SteeringPlan) -> list[Any]:
    return [term for term in plan.terms if term.strength]


def sampling_params(job: GenerationJob, end_tokens: frozenset[int]) -> Any:
    """Return vLLM's parameters for a job; the text and its ends stay with us."""
    from vllm import SamplingParams as VllmParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    asked = job.sampling
    images = job.images.spans if job.images else ()
    moving = moving_terms(job.plan)
    return VllmParams(
        max_tokens=max(1, asked.max_tokens),
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias=dict(asked.logit_bias) or None,
        seed=asked.seed,
        stop_token_ids=sorted(final_tokens(job, end_tokens)),
        ignore_eos=True,
        logprobs=asked.logprobs,
        prompt_logprobs=asked.prompt_logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=StructuredOutputsParams(json=asked.grammar.annotated) if asked.grammar else None,
        extra_args=packed_request(SteeringPlan(tuple(moving)), len(job.prompt), images) if moving else None,
    )
