"""The reference that the engine is held to: one request at a time, plain `generate`, a naive hook."""

import codecs
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from server.engine.protocol import GenerationJob, SamplingParams
from server.engine.token_bytes import token_bytes
from steering.loading import LoadedModel
from steering.types import SteeringPlan, SteeringTerm, SteeringVectors
from steering.vision import ImageInputs


def naive_tokens(loaded: LoadedModel, job: GenerationJob) -> list[int]:
    """Return the tokens that `generate` gives greedily with the plan applied by a hook, written apart."""
    prompt = torch.tensor([job.prompt], device=loaded.device)
    with torch.inference_mode(), naively_steered(loaded.blocks, job):
        output = loaded.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            **(job.images.tensors if job.images else {}),
            max_new_tokens=job.sampling.max_tokens,
            do_sample=False,
            eos_token_id=None if job.sampling.ignore_eos else loaded.tokenizer.eos_token_id,
            pad_token_id=0,
        )
    return [int(token) for token in output[0, len(job.prompt) :]]


def naive_text(loaded: LoadedModel, job: GenerationJob) -> str:
    """Return the reference's text, without a character that the last token leaves incomplete."""
    special = {token for token, added in loaded.tokenizer.added_tokens_decoder.items() if added.special}
    tokens = [token for token in naive_tokens(loaded, job) if token not in special]
    written = b"".join(token_bytes(loaded.tokenizer, token)[1] for token in tokens)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(written)


@contextmanager
def naively_steered(blocks: Sequence[nn.Module], job: GenerationJob) -> Iterator[None]:
    handles = [block.register_forward_hook(naive_hook(layer, job)) for layer, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def naive_hook(layer: int, job: GenerationJob) -> Any:
    """Return a hook that counts the tokens that it has seen and steers them one by one."""
    seen = 0

    def steer(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal seen
        hidden: Tensor = (output[0] if isinstance(output, tuple) else output).clone()
        for place in range(hidden.shape[1]):
            kind = "prompt" if seen < len(job.prompt) else "generated"
            token = "image" if is_image(job, seen) else "text"
            hidden[0, place] = naive_steer(hidden[0, place], layer, (kind, token), job.plan)
            seen += 1
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return steer


def is_image(job: GenerationJob, place: int) -> bool:
    return job.images is not None and any(begin <= place < end for begin, end in job.images.spans)


def naive_steer(hidden: Tensor, layer: int, kind: tuple[str, str], plan: SteeringPlan) -> Tensor:
    shift = torch.zeros_like(hidden)
    for term in plan.terms:
        if layer in term.layers and term.positions in ("all", kind[0]) and term.tokens in ("all", kind[1]):
            shift += term.strength * term.vectors.deltas[layer].to(hidden.device)
    if not shift.any():
        return hidden
    moved = hidden + shift
    return moved * hidden.norm() / moved.norm()


def random_vectors(
    name: str, loaded: LoadedModel, layers: Sequence[int], scale: float = 3.0
) -> SteeringVectors:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    size = loaded.identity.hidden_size
    deltas = {layer: torch.randn(size, generator=generator) * scale for layer in layers}
    return SteeringVectors(name, 1, name.ljust(64, "0"), deltas)


def term(vectors: SteeringVectors, strength: float, **choices: Any) -> SteeringTerm:
    return SteeringTerm(
        vectors,
        strength,
        choices.get("layers", vectors.layers),
        choices.get("positions", "all"),
        choices.get("tokens", "all"),
    )


def greedy_job(
    name: str,
    prompt: Sequence[int],
    tokens: int,
    *terms: SteeringTerm,
    images: ImageInputs | None = None,
) -> GenerationJob:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return GenerationJob(name, tuple(prompt), sampling, SteeringPlan(terms), images)
