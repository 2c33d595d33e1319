"""The yardstick: transformers' own `generate`, one request after the other."""

import time
from collections.abc import Sequence

import torch

from server.bench.load import Pace
from server.bench.workload import Prompt
from steering.loading import LoadedModel


def generate_pace(loaded: LoadedModel, prompts: Sequence[Prompt], tokens: int) -> Pace:
    """Return the pace of greedy `generate`.

    first_token is that of the median of eight requests that wait for their turns, one after the other.
    """
    begin = time.perf_counter()
    for prompt in prompts:
        generate(loaded, prompt, tokens)
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    generate(loaded, prompts[0], 1)
    first = time.perf_counter() - begin
    turns_before_median = 3.5
    return Pace(len(prompts) * tokens / seconds, turns_before_median * seconds / len(prompts) + first)


def generate(loaded: LoadedModel, prompt: Prompt, tokens: int) -> None:
    ids = torch.tensor([prompt.tokens], device=loaded.device)
    with torch.inference_mode():
        output = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert output.shape[1] == len(prompt.tokens) + tokens
