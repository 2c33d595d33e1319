"""Steering in vLLM's worker processes: what `worker_extension_cls` adds to the worker of the platform.

Importing this module has workers of this process prepare the models that they load, before anything is
compiled or captured. Steps are read at two places of a model runner, of either generation: `execute_model`,
which is told who came and who left, and what lays out the batch, after which each row's owner is known.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.worker import gpu_worker

from steering.vllm import op
from steering.vllm.blocks import Unsteerable, prepare_blocks
from steering.vllm.plugin import NAME
from steering.vllm.station import Scheduled, Shape, Station

STATION = "grainserve_station"  # a model runner's attribute
REFUSAL = "grainserve_refusal"  # another: why its model cannot be steered
OPTIONS = NAME  # in vLLM's additional_config, which its compilation cache is keyed by too


class SteeringWorker:
    """The calls that a worker answers beside vLLM's own."""

    model_runner: Any

    def grainserve_load(self, digest: str, packed: bytes) -> None:
        """Take in vectors before any request names them."""
        station_of(self.model_runner).load(digest, packed)

    def grainserve_evict(self, digest: str) -> None:
        station_of(self.model_runner).evict(digest)

    def grainserve_verify(self) -> None:
        """Raise NotSteered if any step was not steered as it was told to be."""
        station_of(self.model_runner).verify()

    def grainserve_describe(self) -> dict[str, Any]:
        """Return what is steered here, or why nothing can be; and how many graphs were compiled so far."""
        refusal = getattr(self.model_runner, REFUSAL, None)
        if refusal is not None:
            return {"refused": refusal}
        shape = station_of(self.model_runner).shape
        return {
            "layers": list(shape.layers),
            "hidden_size": shape.hidden_size,
            "graphs": shape.graphs,
            "runner": type(self.model_runner).__module__,
            "compiled": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        }


def station_of(runner: Any) -> Station:
    station = getattr(runner, STATION, None)
    if station is None:
        raise Unsteerable("this worker's model was not prepared for steering")
    return station


def prepare_runner(runner: Any, config: Any) -> None:
    """Prepare the model that a runner has just loaded, and read the runner's steps."""
    options = config.additional_config[OPTIONS]
    hidden_size = config.model_config.get_hidden_size()
    model = runner.get_model()
    shape = Shape(
        layers=tuple(prepare_blocks(model, config.model_config.get_total_num_hidden_layers())),
        hidden_size=hidden_size,
        capacity=options["capacity"],
        most_tokens=config.scheduler_config.max_num_batched_tokens,
        graphs=options["graphs"],
    )
    station = Station(shape, runner.device)
    setattr(runner, STATION, station)
    op.register()
    op.use(station.steer)
    read_steps(runner, station)


def read_steps(runner: Any, station: Station) -> None:
    execute = runner.execute_model

    def execute_model(scheduler_output: Any, *arguments: Any, **named: Any) -> Any:
        arrived = {
            request.req_id: getattr(request.sampling_params, "extra_args", None)
            for request in scheduler_output.scheduled_new_reqs
        }
        station.begin(scheduler_output.finished_req_ids, arrived)
        result = execute(scheduler_output, *arguments, **named)
        station.finish()
        return result

    runner.execute_model = execute_model
    if hasattr(runner, "_prepare_inputs"):
        runner._prepare_inputs = first_layout(runner, station)
    else:
        runner.prepare_inputs = second_layout(runner, station)


def first_layout(runner: Any, station: Station) -> Callable[..., Any]:
    """Return the first generation's way to lay out a batch, followed by ours to steer it."""
    lay_out = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, counts: Any) -> Any:
        laid_out = lay_out(scheduler_output, counts)
        batch = runner.input_batch
        requests = batch.req_ids[: batch.num_reqs]
        computed = batch.num_computed_tokens_cpu[: batch.num_reqs]
        station.prepare(scheduled(requests, counts, computed))
        return laid_out

    return prepare_inputs


def second_layout(runner: Any, station: Station) -> Callable[..., Any]:
    """Return the second generation's way to lay out a batch, followed by ours to steer it."""
    lay_out = runner.prepare_inputs

    def prepare_inputs(*arguments: Any, **named: Any) -> Any:
        batch = lay_out(*arguments, **named)
        station.prepare(scheduled(batch.req_ids, batch.num_scheduled_tokens, batch.num_computed_tokens_np))
        return batch

    return prepare_inputs


def scheduled(requests: Any, counts: Any, computed: Any) -> list[Scheduled]:
    return [
        Scheduled(request, int(count), int(before))
        for request, count, before in zip(requests, counts, computed, strict=True)
    ]


def prepare_loaded(load_model: Callable[..., None]) -> Callable[..., None]:
    def load_and_prepare(self: Any, **named: Any) -> None:
        load_model(self, **named)
        if OPTIONS in (self.vllm_config.additional_config or {}):
            try:
                prepare_runner(self.model_runner, self.vllm_config)
            except Unsteerable as error:  # told when the server asks, rather than at the end of a long trace
                setattr(self.model_runner, REFUSAL, str(error))

    load_and_prepare.__wrapped__ = load_model  # type: ignore[attr-defined]
    return load_and_prepare


if not hasattr(gpu_worker.Worker.load_model, "__wrapped__"):
    gpu_worker.Worker.load_model = prepare_loaded(gpu_worker.Worker.load_model)
