"""torch.distributed.pipelining's schedules of back-propagation with SIMULATED stages, as a pipeline of them would run.

A batch takes each stage the same sleep in all as a step of `alrpc.bench.simulated`: a third forward, two thirds backward, cut
into micro-batches; activations go forward and gradients of the same size go back.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

from alrpc.agent import listening_socket, process_role, run_processes
from alrpc.process import keep_memory, leave, log_to, watch_parent

if __name__ == "__main__":
    watch_parent()
    warnings.filterwarnings("ignore", module="torch.distributed")

import torch
from torch import Tensor, distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from alrpc.bench.simulated import FORWARD, SAMPLES, Sleeper

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
MICRO_BATCHES = 8
WARM = 3  # steps that do not count
RESULT = "seconds.json"


class Sleeping(nn.Module):
    """x -> x, with a sleep in each direction; one parameter, so that there is something to send gradients for."""

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
    name: str, stages: int, stage_ms: float, message_mb: float, steps: int, keeps_memory: bool, directory: Path
) -> float:
    """Seconds that a batch takes in a pipeline of so many processes, in a directory made for it.

    Args:
        keeps_memory: whether its processes keep what they free, in large pages, as this engine's do; otherwise they are as
            Python and torch have them.

    Raises:
        RunFailed, Interrupted: as `alrpc.agent.run_processes`.
    """
    directory.mkdir(parents=True)
    arguments = ["alrpc.bench.peers", name, str(stage_ms), str(message_mb), str(steps), str(directory), str(int(keeps_memory))]
    variables = {} if keeps_memory else {"GLIBC_TUNABLES": ""}
    with listening_socket(0) as listener:
        run_processes(arguments, stages, directory, listener, process_role, silent=True, variables=variables)
    return json.loads((directory / RESULT).read_text(encoding="utf-8"))


def main(name: str, stage_ms: float, message_mb: float, steps: int, directory: Path, keeps_memory: bool) -> None:
    """Be one process of the pipeline."""
    if keeps_memory:
        keep_memory()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    log_to(directory, f"process-{rank + 1}")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
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
        (directory / RESULT).write_text(json.dumps((time.perf_counter() - began) / steps), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]), sys.argv[6] == "1")
