"""Measures the cost of a message in gloo itself: CPU time of a bare send and a bare receive, two copies through a socket."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import distributed

from alrpc import rundir
from alrpc.pipeline.groups import join_group
from alrpc.reading.documents import SECONDS, read_json
from alrpc.runtime.local import Launch, process_role, run_processes
from alrpc.runtime.process import Process, log_to

MESSAGES, WARM = 150, 15  # messages that count, and those before that do not


def copy_seconds(message_mb: float, pause: float, directory: Path) -> float:
    """CPU seconds that a message of `message_mb` MB costs its sender and its receiver together.

    Args:
        pause: seconds between two messages, as in the pipeline that it is compared with, because a process that has slept
            longer finds less in the processor's caches.
        directory: directory to make, for logs.
    """
    directory.mkdir()
    run_processes(Launch(measure, (message_mb, pause, directory), 2, process_role, silent=True), directory)
    return sum(read_json(directory / f"{rank}.json", SECONDS) for rank in (0, 1))


def measure(process: Process, message_mb: float, pause: float, directory: Path) -> None:
    """Run the sender (rank 0) or the receiver, and write the CPU seconds per message."""
    rank = int(os.environ["RANK"])
    log_to(directory, f"process-{rank + 1}")
    torch.set_num_threads(1)
    join_group("gloo")
    message = torch.ones(round(message_mb * (1 << 20)), dtype=torch.uint8)
    began = 0.0
    for number in range(WARM + MESSAGES):
        if number == WARM:
            began = time.process_time()
        if rank == 0:
            time.sleep(pause)
            distributed.send(message, 1)
        else:
            distributed.recv(message, 0)
    rundir.write_json(directory / f"{rank}.json", (time.process_time() - began) / MESSAGES)
    distributed.barrier()
    distributed.destroy_process_group()
