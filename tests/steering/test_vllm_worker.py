"""The places where a model runner's steps are read, on stand-ins for runners of both generations."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from steering.types import SteeringPlan, SteeringTerm, SteeringVectors
from steering.vllm.blocks import Unsteerable, decoder_blocks
from steering.vllm.plans import packed_request, packed_vectors
from steering.vllm.station import Shape, Station
from steering.vllm.worker import SteeringWorker, read_steps

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
CALM = SteeringVectors("calm", 1, "calm", {0: torch.ones(4)})
PROMPT = 3


class Runner:
    """A runner whose one block is the station's, over tokens of ones."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.moved: list[bool] = []

    def forward(self, tokens: int) -> None:
        hidden = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(tokens, 1)
        before = hidden.clone()
        self.station.steer(0, hidden, torch.zeros_like(hidden))
        self.moved = [not torch.equal(new, old) for new, old in zip(hidden, before, strict=True)]


class First(Runner):
    """As vLLM's first generation: the batch is an attribute, which `_prepare_inputs` settles."""

    def execute_model(self, output: Any) -> str:
        requests = list(output.num_scheduled_tokens)
        self.input_batch = SimpleNamespace(
            req_ids=[*requests, None],
            num_reqs=len(requests),
            num_computed_tokens_cpu=np.array([*output.computed, 0]),
        )
        counts = np.array(list(output.num_scheduled_tokens.values()))
        assert self._prepare_inputs(output, counts) == "inputs"
        self.forward(int(counts.sum()))
        return "done"

    def _prepare_inputs(self, output: Any, counts: Any) -> str:
        return "inputs"


class Second(Runner):
    """As its second generation: `prepare_inputs` returns the batch."""

    def execute_model(self, output: Any) -> str:
        batch = self.prepare_inputs(output, None, None, num_active_loras=0)
        self.forward(int(batch.num_scheduled_tokens.sum()))
        return "done"

    def prepare_inputs(self, output: Any, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(
            req_ids=list(output.num_scheduled_tokens),
            num_scheduled_tokens=np.array(list(output.num_scheduled_tokens.values())),
            num_computed_tokens_np=np.array(output.computed),
        )


@pytest.fixture(params=[First, Second])
def runner(request: pytest.FixtureRequest) -> Runner:
    station = Station(Shape((0,), 4, 4, 32, False), torch.device("cpu"))
    station.load(CALM.digest, packed_vectors(CALM))
    made: Runner = request.param(station)
    read_steps(made, station)
    return made


def step(
    runner: Any,
    scheduled: dict[str, int],
    computed: list[int],
    new: tuple[str, ...] = (),
    finished: tuple[str, ...] = (),
) -> list[bool]:
    """Return which tokens a step moved; a request named `plain` is not steered."""
    plan = SteeringPlan((SteeringTerm(CALM, 1.0, (0,), "generated"),))
    arrived = [
        SimpleNamespace(
            req_id=name,
            sampling_params=SimpleNamespace(
                extra_args=None if name == "plain" else packed_request(plan, PROMPT)
            ),
        )
        for name in new
    ]
    output = SimpleNamespace(
        scheduled_new_reqs=arrived,
        finished_req_ids=set(finished),
        num_scheduled_tokens=scheduled,
        computed=computed,
    )
    assert runner.execute_model(output) == "done"
    moved: list[bool] = runner.moved
    return moved


def test_each_row_is_steered_by_its_own_request_wherever_it_stands(runner: Runner) -> None:
    assert step(runner, {"a": 3, "plain": 2}, [0, 0], new=("a", "plain")) == [False] * 5
    assert step(runner, {"plain": 1, "a": 1}, [2, 3]) == [False, True]
    assert step(runner, {"a": 2, "plain": 1}, [2, 3]) == [False, True, False], "from where generation begins"
    assert step(runner, {"plain": 1}, [4], finished=("a",)) == [False]


def test_a_request_that_was_put_back_keeps_its_steering(runner: Runner) -> None:
    step(runner, {"a": 3}, [0], new=("a",))
    assert step(runner, {"a": 5}, [0], new=("a",)) == [False] * 3 + [True] * 2


def test_batches_that_carry_no_parameters_are_left_alone(runner: Any) -> None:
    output = SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id="warm-up", sampling_params=None)],
        finished_req_ids=set(),
        num_scheduled_tokens={"warm-up": 2},
        computed=[0],
    )
    assert runner.execute_model(output) == "done"
    assert runner.moved == [False, False]


def test_a_worker_whose_model_was_not_prepared_says_so() -> None:
    worker = SteeringWorker()
    worker.model_runner = SimpleNamespace()
    with pytest.raises(Unsteerable, match="not prepared"):
        worker.grainserve_describe()


def test_a_model_without_one_list_of_blocks_is_refused() -> None:
    with pytest.raises(Unsteerable, match="0 lists of 4 decoder blocks"):
        decoder_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2)), 4)
