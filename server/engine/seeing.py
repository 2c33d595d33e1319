"""The vision tower beside the inference thread: requests with images wait here until theirs are seen."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from server.engine.running import RunningRequest
from steering.errors import GenerationFailed, SteeringError
from steering.vision import DecoderDoor, JoinedPrompt

Seen = tuple[RunningRequest, SteeringError | None]


class Seeing:
    """Joins words and images of one prompt at a time, so that running requests decode meanwhile.

    most: prompts held joined at once, from their images' turn until the request leaves. notify is called,
    from another thread, when `finished` has something new. All methods are the inference thread's.
    """

    def __init__(self, door: DecoderDoor, most: int, notify: Callable[[], None]) -> None:
        self._door = door
        self._most = most
        self._notify = notify
        self._waiting: deque[RunningRequest] = deque()
        self._held: dict[RunningRequest, Future[JoinedPrompt]] = {}
        self._done: deque[RunningRequest] = deque()
        self._pool = ThreadPoolExecutor(1, "vision", initializer=leave_half_the_cores)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, request: RunningRequest) -> None:
        self._waiting.append(request)
        self._start()

    def leave(self, request: RunningRequest) -> None:
        """Forget a request, wherever it is; one that was never here is none."""
        if request in self._waiting:
            self._waiting.remove(request)
        if request in self._held:
            future = self._held.pop(request)
            if future not in self._held.values():
                future.cancel()
            self._start()

    def finished(self) -> Iterator[Seen]:
        """Yield the requests whose images have been seen, joined, or else with what went wrong."""
        while self._done:
            request = self._done.popleft()
            if request not in self._held:
                continue
            error = self._held[request].exception()
            if error is None:
                request.joined = self._held[request].result()
            yield request, None if error is None else told(error)

    def _start(self) -> None:
        while self._waiting and len(self._held) < self._most:
            request = self._waiting.popleft()
            future = self._shared(request) or self._pool.submit(self._see, request)
            self._held[request] = future
            future.add_done_callback(lambda _, request=request: self._note(request))  # type: ignore[misc]

    def _shared(self, request: RunningRequest) -> Future[JoinedPrompt] | None:
        """Return what another choice of the same prompt has begun, if any."""
        siblings = request.job.siblings
        same = (
            future
            for other, future in self._held.items()
            if siblings is not None and other.job.siblings == siblings
        )
        return next(same, None)

    def _see(self, request: RunningRequest) -> JoinedPrompt:
        assert request.job.images is not None
        with torch.inference_mode():
            return self._door.join(request.job.prompt, request.job.images)

    def _note(self, request: RunningRequest) -> None:
        self._done.append(request)
        self._notify()


def told(error: BaseException) -> SteeringError:
    if isinstance(error, SteeringError):
        return error
    return GenerationFailed(f"the model failed on this request's images ({type(error).__name__})")


def leave_half_the_cores() -> None:
    """Have this thread's work leave cores to the inference thread; others keep their number."""
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
