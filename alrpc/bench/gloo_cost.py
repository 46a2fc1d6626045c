"""What one message costs in gloo itself: CPU time of a bare send and a bare receive, the two copies through a socket."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from alrpc.agent import listening_socket, process_role, run_processes
from alrpc.process import leave, log_to, watch_parent

if __name__ == "__main__":
    watch_parent()

import torch
from torch import distributed

MESSAGES, WARM = 150, 15


def copy_seconds(message_mb: float, pause: float) -> float:
    """CPU seconds that one message of so many MB costs its sender and its receiver together.

    Args:
        pause: seconds between two messages, as in the pipeline that it is compared with: a process that has slept longer finds
            less in the processor's caches.
    """
    with tempfile.TemporaryDirectory() as folder, listening_socket(0) as listener:
        arguments = ["alrpc.bench.gloo_cost", str(message_mb), str(pause), folder]
        run_processes(arguments, 2, Path(folder), listener, process_role, silent=True)
        return sum(json.loads((Path(folder) / str(rank)).read_text(encoding="utf-8")) for rank in (0, 1))


def main(message_mb: float, pause: float, directory: Path) -> None:
    rank = int(os.environ["RANK"])
    log_to(directory, f"process-{rank + 1}")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
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
    (directory / str(rank)).write_text(json.dumps((time.process_time() - began) / MESSAGES), encoding="utf-8")
    distributed.barrier()
    leave(0)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
