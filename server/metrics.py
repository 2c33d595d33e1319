"""What the server counts and times, for Prometheus; a registry per app."""

import time
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.engine.protocol import Engine, TokenEvent
from server.generation import Events
from server.run import Run

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
WHOLE_REQUEST = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The app's instruments."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "grainserve_requests",
            "Requests by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "grainserve_request_seconds",
            "Time to the end of an answer.",
            ("route",),
            buckets=WHOLE_REQUEST,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("grainserve_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.generated_tokens = Counter(
            "grainserve_generated_tokens", "Tokens generated.", registry=self.registry
        )
        self.steered_tokens = Counter(
            "grainserve_steered_tokens", "Token positions moved.", ("profile",), registry=self.registry
        )
        self.first_token = Histogram(
            "grainserve_time_to_first_token_seconds",
            "Time from a request's arrival to its first token.",
            buckets=FIRST_TOKEN,
            registry=self.registry,
        )
        self.between_tokens = Histogram(
            "grainserve_inter_token_seconds",
            "Time between a choice's tokens.",
            buckets=BETWEEN_TOKENS,
            registry=self.registry,
        )
        self._watch(engine)
        if engine.registry is not None:
            self.registry.register(engine.registry)  # a registry collects as a collector does

    def _watch(self, engine: Engine) -> None:
        running = Gauge("grainserve_requests_running", "Choices being generated.", registry=self.registry)
        waiting = Gauge("grainserve_requests_waiting", "Choices in the queue.", registry=self.registry)
        running.set_function(lambda: engine.health().running)
        waiting.set_function(lambda: engine.health().waiting)


class Meter:
    """Counts and times one run."""

    def __init__(self, metrics: Metrics, run: Run, started: float) -> None:
        self._metrics = metrics
        self._run = run
        self._last = [started] * len(run.jobs)
        self._tokens = [0] * len(run.jobs)
        self._steered: list[tuple[int, ...]] = [()] * len(run.jobs)
        metrics.prompt_tokens.inc(run.prompt_tokens)

    def saw(self, index: int, event: TokenEvent) -> None:
        fresh = event.completion_tokens - self._tokens[index]
        self._steered[index] = event.steered_tokens
        if fresh <= 0:
            return
        now = time.perf_counter()
        passed = now - self._last[index]
        if self._tokens[index] == 0:
            self._metrics.first_token.observe(passed)
        else:
            self._metrics.between_tokens.observe(passed / fresh)
        self._metrics.generated_tokens.inc(fresh)
        self._tokens[index], self._last[index] = event.completion_tokens, now

    def finish(self) -> None:
        for index, steered in enumerate(self._steered):
            for term, tokens in zip(self._run.plan_of(index).terms, steered, strict=False):
                self._metrics.steered_tokens.labels(term.vectors.name).inc(tokens)


async def metered(events: Events, meter: Meter) -> Events:
    """Return the same events, counted and timed; what was generated before a cancellation counts too."""
    try:
        async with aclosing(events):
            async for index, event in events:
                meter.saw(index, event)
                yield index, event
    finally:
        meter.finish()
