"""Chooses a method's threads and micro-batches by trials on the machine that it runs on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import distributed

from alrpc.system import cores, synchronize

TRIALS = 3  # timed repetitions of each choice, after one that is not


def thread_choices(processes: int) -> list[int]:
    """The numbers of threads to try, 1, 2, 4, …, for each process where `processes` compute at once on this machine's cores."""
    most = max(1, cores() // processes)
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def fastest(choices: Sequence[int], trial: Callable[[int], None], device: torch.device) -> tuple[int, dict[int, float]]:
    """The fastest choice, and the seconds of each. In a process group every process calls this, and rank 0 decides."""
    together = distributed.is_initialized() and distributed.get_world_size() > 1
    seconds: dict[int, float] = {}
    for choice in choices:
        trial(choice)
        if together:
            distributed.barrier()
        synchronize(device)
        began = time.perf_counter()
        for _ in range(TRIALS):
            trial(choice)
        synchronize(device)
        seconds[choice] = (time.perf_counter() - began) / TRIALS
    decided: list = [min(seconds, key=seconds.__getitem__), seconds]
    if together:
        distributed.broadcast_object_list(decided, src=0)
    return decided[0], decided[1]
