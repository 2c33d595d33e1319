"""Run the benchmark: yardstick and server take turns, and every ratio is taken within one round."""

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from server.bench.load import Ask, Pace, pace
from server.bench.served import Served, served
from server.bench.workload import Prompt, make_prompts, register_profiles
from server.bench.yardstick import generate_pace
from steering.loading import LoadedModel, load_model

PROFILES, PAIRS, PAIR_TOKENS, YARDSTICK_REQUESTS = 1000, 200, 16, 3
PASSES = 14

Pass = Callable[[], Pace]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. arguments: passed on to `grainserve serve`; rounds: medians are over these."""

    model: str | None
    cache_dir: Path
    arguments: tuple[str, ...]
    device: str
    dtype: str
    threads: int | None
    rounds: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """The paces of one round, all measured within a few minutes on the same machine."""

    generate: Pace
    one: Pace
    eight: Pace
    many: Pace
    eight_steered: Pace
    many_steered: Pace
    same_pair: Pace
    new_pairs: Pace
    grown_bytes: int


@dataclass(frozen=True, slots=True)
class Findings:
    rounds: tuple[Round, ...]
    start_seconds: float
    machine: str

    def median(self, value: Callable[[Round], float]) -> float:
        return statistics.median(map(value, self.rounds))


def run_benchmark(plan: Plan, console: Console) -> Findings:
    """Run all rounds and return what was measured; raises ModelUnavailable or RuntimeError."""
    if plan.threads:
        torch.set_num_threads(plan.threads)
    loaded = load_model(plan.model, plan.cache_dir, plan.dtype, plan.device)
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        registering = progress.add_task(f"registering {PROFILES} profiles", total=PROFILES)
        profiles = register_profiles(Path(folder), loaded, PROFILES, lambda: progress.advance(registering))
        with served(plan.arguments, Path(folder)) as server:
            bench = Bench(loaded, server, profiles, plan.tokens)
            task = progress.add_task("measuring", total=plan.rounds * PASSES)
            bench.warm_up()
            rounds = [bench.round(number, lambda: progress.advance(task)) for number in range(plan.rounds)]
            return Findings(tuple(rounds), server.start_seconds, describe_machine(loaded))


def describe_machine(loaded: LoadedModel) -> str:
    name = (
        torch.cuda.get_device_name(loaded.device)
        if loaded.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    kind = str(loaded.model.dtype).removeprefix("torch.")
    return f"{name}; torch {torch.__version__}; {loaded.identity.id} in {kind}"


class Bench:
    """One model, one server, and the passes of a round."""

    def __init__(self, loaded: LoadedModel, server: Served, profiles: Sequence[str], tokens: int) -> None:
        self._loaded = loaded
        self._server = server
        self._profiles = profiles
        self._tokens = tokens
        self._pairs = 0

    def warm_up(self) -> None:
        prompts = self._prompts(8, seed=999)
        generate_pace(self._loaded, prompts[:1], 8)
        for asks in (self._plain(prompts), self._steered(prompts)):
            asyncio.run(pace(self._server.url, asks, 8))

    def round(self, number: int, advance: Callable[[], None]) -> Round:
        def measured(result: Pace) -> Pace:
            advance()
            return result

        few, many = self._prompts(8, number), self._prompts(32, 100 + number)
        alone = few[:YARDSTICK_REQUESTS]
        generate, one = self._turns(
            lambda: generate_pace(self._loaded, alone, self._tokens),
            lambda: self._pace(self._plain(alone), 1),
            measured,
        )
        eight, eight_steered = self._turns(*self._both(few), measured)
        many_plain, many_steered = self._turns(*self._both(many), measured)
        same, new, grown = self._pair_turns(measured)
        return Round(generate, one, eight, many_plain, eight_steered, many_steered, same, new, grown)

    def _turns(self, first: Pass, second: Pass, measured: Callable[[Pace], Pace]) -> tuple[Pace, Pace]:
        """Return the pace of two passes each, run first, second, second, first, so that drift cancels out."""
        paces = [measured(run()) for run in (first, second, second, first)]
        return joined(paces[0], paces[3]), joined(paces[1], paces[2])

    def _both(self, prompts: Sequence[Prompt]) -> tuple[Pass, Pass]:
        """Return the passes of all the prompts at once, unsteered and each steered as no other was."""
        return (
            lambda: self._pace(self._plain(prompts), len(prompts)),
            lambda: self._pace(self._steered(prompts), len(prompts)),
        )

    def _pair_turns(self, measured: Callable[[Pace], Pace]) -> tuple[Pace, Pace, int]:
        """Return the pace with one pair for all, with a new pair for each, and the memory's growth."""
        prompts = [*self._prompts(8, 77)] * (PAIRS // 8)
        one = [{"profile": self._profiles[0], "strength": 0.5}]
        same = [Ask(prompt, PAIR_TOKENS, one) for prompt in prompts]
        new = [Ask(prompt, PAIR_TOKENS, self._next_pair()) for prompt in prompts]
        before = self._server.memory()
        same_pace = measured(self._pace(same, 8))
        new_pace = measured(self._pace(new, 8))
        return same_pace, new_pace, self._server.memory() - before

    def _pace(self, asks: list[Ask], concurrent: int) -> Pace:
        return asyncio.run(pace(self._server.url, asks, concurrent))

    def _prompts(self, count: int, seed: int) -> list[Prompt]:
        return make_prompts(self._loaded.tokenizer, count, seed)

    def _plain(self, prompts: Sequence[Prompt]) -> list[Ask]:
        return [Ask(prompt, self._tokens) for prompt in prompts]

    def _steered(self, prompts: Sequence[Prompt]) -> list[Ask]:
        return [Ask(prompt, self._tokens, self._next_pair()) for prompt in prompts]

    def _next_pair(self) -> list[dict[str, object]]:
        """Return a profile and a strength that no request had before."""
        self._pairs += 1
        profile = self._profiles[self._pairs % len(self._profiles)]
        return [{"profile": profile, "strength": round(0.2 + self._pairs % 799 / 1000, 3)}]


def joined(first: Pace, second: Pace) -> Pace:
    """Return the pace of two equal passes taken as one."""
    return Pace(
        statistics.harmonic_mean((first.tokens_per_second, second.tokens_per_second)),
        statistics.mean((first.first_token, second.first_token)),
    )
