"""Measures pipelines of back-propagation with SIMULATED stages: torch.distributed.pipelining's schedules, and PipeDream.

For a batch each stage sleeps as long in all as for a step of `alrpc.experiments.bench.simulated`: a third forward, two thirds
backward. Torch's schedules cut a batch into micro-batches; PipeDream has whole ones under way, as many as there are stages, over
this engine's links. Activations go forward, and gradients of the same size go back.
"""

from __future__ import annotations

import functools
import os
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from alrpc import rundir
from alrpc.experiments.baselines.neighbours import connect, disconnect
from alrpc.experiments.bench.simulated import FORWARD, SAMPLES, Sleeper
from alrpc.experiments.bench.slow_links import SlowLinks
from alrpc.pipeline.groups import join_group
from alrpc.pipeline.wire import CPU
from alrpc.reading.documents import SECONDS, read_json
from alrpc.runtime.local import Launch, process_role, run_processes
from alrpc.runtime.process import Process, log_to
from alrpc.training.packet import Kind, Packet

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
MICRO_BATCHES = 8
WARM = 3  # first steps, which do not count
RESULT = "seconds.json"


def theoretical_efficiency(name: str, stages: int) -> float:
    """The share of the time that a peer's stages work by its schedule, if messages take no time."""
    return MICRO_BATCHES / (MICRO_BATCHES + stages - 1) if name in SCHEDULES else 1.0


class Sleeping(nn.Module):
    """x -> x, with a sleep in each direction; it has one parameter, so that it has a gradient to send back."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.sleeper = Sleeper()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return _Sleep.apply(x, self.weight, self)


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stage: Sleeping) -> Tensor:
        ctx.stage = stage
        stage.sleeper.sleep(FORWARD * stage.seconds)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.stage.sleeper.sleep((1 - FORWARD) * ctx.stage.seconds)
        return gradient, torch.zeros(()), None


def run_peer(
    name: str,
    stages: int,
    stage_ms: float,
    message_mb: float,
    steps: int,
    keeps_memory: bool,
    directory: Path,
    links: SlowLinks | None = None,
) -> float:
    """Seconds that a batch takes in a pipeline of `stages` processes, run in a directory made for it.

    Args:
        keeps_memory: whether its processes keep freed memory, in large pages, as this engine's do; otherwise they have the
            defaults of Python and torch.
        links: the hosts of the processes, if their links are slow.

    Raises:
        RunFailed, Interrupted: as `alrpc.runtime.local.run_processes`.
    """
    launch = Launch(
        run_rank_of_peer,
        (name, stage_ms, message_mb, steps, directory, links),
        stages,
        process_role,
        silent=True,
        variables=None if keeps_memory else {"GLIBC_TUNABLES": ""},
    )
    with rundir.new_directory(directory, name):
        run_processes(launch, directory)
    return read_json(directory / RESULT, SECONDS)


def run_rank_of_peer(
    process: Process,
    name: str,
    stage_ms: float,
    message_mb: float,
    steps: int,
    directory: Path,
    links: SlowLinks | None,
) -> None:
    """Run one process of the pipeline."""
    warnings.filterwarnings("ignore", module="torch.distributed")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    log_to(directory, f"process-{rank + 1}")
    torch.set_num_threads(1)
    if links is not None:
        links.enter(rank)
    join_group("gloo")
    batch = torch.randn(SAMPLES, round(message_mb * (1 << 20) / 4 / SAMPLES))
    time_batch = time_pipedream if name == "pipedream" else functools.partial(time_schedule, SCHEDULES[name])
    seconds = time_batch(rank, world, stage_ms / 1000, batch, steps)
    if rank == 0:
        rundir.write_json(directory / RESULT, seconds)
    distributed.barrier()
    distributed.destroy_process_group()


def time_schedule(schedule_type, rank: int, world: int, seconds: float, batch: Tensor, steps: int) -> float:
    """Seconds that a batch takes in a schedule of torch.distributed.pipelining."""
    stage = PipelineStage(Sleeping(seconds / MICRO_BATCHES), rank, world, CPU)
    schedule = schedule_type(stage, MICRO_BATCHES, loss_fn=lambda output, target: output[:, :1].sum())
    began = 0.0
    for step in range(WARM + steps):
        if step == WARM:
            distributed.barrier()
            began = time.perf_counter()
        if rank == 0:
            schedule.step(batch)
        elif rank == world - 1:
            schedule.step(target=torch.zeros(SAMPLES), losses=[])
        else:
            schedule.step()
    distributed.barrier()
    return (time.perf_counter() - began) / steps


def time_pipedream(rank: int, world: int, seconds: float, batch: Tensor, steps: int) -> float:
    """Seconds that a batch takes in the order of `alrpc.experiments.baselines.asynchronous`, while all processes work."""
    neighbours, sleeper, warm_up = connect(CPU), Sleeper(), world - 1 - rank
    filling = WARM + 2 * world

    def backward() -> None:
        if neighbours.gradients is not None:
            next(neighbours.gradients)
        sleeper.sleep((1 - FORWARD) * seconds)
        if neighbours.backward is not None:
            neighbours.backward.send(Packet(Kind.TRAIN, 1, 0, {"x": batch}))

    began = 0.0
    for step in range(filling + steps):
        if step == filling:
            began = time.perf_counter()
        if neighbours.activations is not None:
            next(neighbours.activations)
        sleeper.sleep(FORWARD * seconds)
        if neighbours.forward is not None:
            neighbours.forward.send(Packet(Kind.TRAIN, 1, step, {"x": batch}))
        if step >= warm_up:
            backward()
    took = (time.perf_counter() - began) / steps
    for _ in range(warm_up):
        backward()
    disconnect(neighbours)
    return took
