"""Measures torch.distributed.pipelining's schedules of back-propagation with SIMULATED stages.

For a batch each stage sleeps as long in all as for a step of `alrpc.experiments.bench.simulated`: a third forward, two thirds
backward, cut into micro-batches. Activations go forward, and gradients of the same size go back.
"""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from alrpc import rundir
from alrpc.experiments.bench.simulated import FORWARD, SAMPLES, Sleeper
from alrpc.experiments.bench.slow_links import SlowLinks
from alrpc.pipeline.groups import join_group
from alrpc.reading.documents import SECONDS, read_json
from alrpc.runtime.local import Launch, process_role, run_processes
from alrpc.runtime.process import Process, log_to

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
MICRO_BATCHES = 8
WARM = 3  # first steps, which do not count
RESULT = "seconds.json"


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
    cpu = torch.device("cpu")
    stage = PipelineStage(Sleeping(stage_ms / 1000 / MICRO_BATCHES), rank, world, cpu)
    schedule = SCHEDULES[name](stage, MICRO_BATCHES, loss_fn=lambda output, target: output[:, :1].sum())
    batch = torch.randn(SAMPLES, round(message_mb * (1 << 20) / 4 / SAMPLES))
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
    if rank == 0:
        rundir.write_json(directory / RESULT, (time.perf_counter() - began) / steps)
    distributed.barrier()
    distributed.destroy_process_group()
