"""Placement of stages: their components, devices, transport and cores."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from alrpc.config import Config
from alrpc.errors import UsageError, UserError
from alrpc.pipeline.groups import SHARING
from alrpc.system import use_deterministic_kernels

SHARING_SINCE = (2, 30)


def split_components(components: int, stages: int, split: Sequence[int] | None) -> list[list[int]]:
    """The consecutive component numbers (from 1) of each stage, for a given split or the most even one.

    Raises:
        UserError: naming pipeline.stages or pipeline.split.
    """
    if split is not None:
        if len(split) != stages:
            raise UsageError(f"pipeline.split: got {list(split)}, {len(split)} entries for {stages} stages; give one for each")
        if sum(split) != components:
            raise UsageError(
                f"pipeline.split: got {list(split)}, {sum(split)} components; it must add up to the model's {components}"
            )
        sizes = list(split)
    else:
        if stages > components:
            raise UsageError(f"pipeline.stages: got {stages}, but the model has {components} components; use 1 to {components}")
        even, rest = divmod(components, stages)
        sizes = [even + (stage < rest) for stage in range(stages)]
    ends = [sum(sizes[: stage + 1]) for stage in range(stages)]
    return [list(range(end - size + 1, end + 1)) for end, size in zip(ends, sizes, strict=True)]


def check_pipeline(config: Config, components: int) -> None:
    """Check that a network with this number of components fits the configured stages and split.

    Raises:
        UserError: naming pipeline.stages or pipeline.split.
    """
    split = config.pipeline.split
    split_components(components, config.pipeline.stages, None if split == "auto" else split)


@dataclass(frozen=True)
class Placement:
    """Where a stage's process runs, which it reports to the coordinator before it receives its spec."""

    stage: int
    host: str
    pid: int
    index: int
    """Index of the stage on its host, from 0."""
    neighbours: int
    """Number of stages on its host, including itself."""
    gpus: int
    log: str
    shares: bool = False
    """Whether its NCCL lets several processes share a GPU."""


def local_placement(rank: int, log: str) -> Placement:
    """This stage's placement, from the environment that torchrun (or `alrpc launch`) sets for every process."""
    coordinator_here = int(os.environ.get("GROUP_RANK", 0)) == 0
    return Placement(
        stage=rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        index=int(os.environ["LOCAL_RANK"]) - coordinator_here,
        neighbours=int(os.environ["LOCAL_WORLD_SIZE"]) - coordinator_here,
        gpus=torch.cuda.device_count(),
        log=log,
        shares=nccl_shares_gpus(),
    )


def nccl_shares_gpus() -> bool:
    """Whether NCCL lets several processes share a GPU, which version 2.30 and later do if an environment variable is set."""
    is_available = torch.cuda.is_available() and distributed.is_nccl_available()
    return is_available and torch.cuda.nccl.version() >= SHARING_SINCE and os.environ.get(SHARING, "1") == "1"


def choose_devices(placements: Sequence[Placement], wanted: str) -> tuple[list[str], str]:
    """The device of each stage, and the transport of packets between stages: "nccl" or "gloo".

    Stages that share a GPU exchange packets through host memory, unless NCCL supports sharing.

    Raises:
        UserError: when the device is cuda but a host has no GPU.
    """
    if wanted == "cpu" or (wanted == "auto" and not all(each.gpus for each in placements)):
        return ["cpu"] * len(placements), "gloo"
    possible = all(each.shares for each in placements) or not any(map(must_share, placements))
    for each in placements:
        if each.gpus == 0:
            raise UserError(f"device: got cuda, but stage {each.stage} finds no GPU on host {each.host}; use cpu or auto")
    return [f"cuda:{each.index % each.gpus}" for each in placements], "nccl" if possible else "gloo"


def must_share(placement: Placement) -> bool:
    """Whether a stage's host has fewer GPUs than stages."""
    return placement.gpus < placement.neighbours


def describe_transport(placements: Sequence[Placement], devices: Sequence[str], transport: str) -> str | None:
    """How packets travel between stages on GPUs, and the reason; None on CPUs."""
    if devices[0] == "cpu":
        return None
    share = any(map(must_share, placements))
    if transport == "gloo":
        return "gloo, through host memory: stages share a GPU, which NCCL allows from 2.30 on"
    return "NCCL, stages share a GPU" if share else "NCCL"


def choose_cores(placement: Placement, threads: int, pin: str) -> list[int] | None:
    """The cores of a stage on a CPU; None to leave the choice to the operating system.

    With "auto" cores are pinned only if the stages fill the machine exactly: on a larger machine other programs may use the
    cores, on a smaller one the operating system shares them better.
    """
    if pin == "never" or not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    wanted = placement.neighbours * threads
    if pin == "auto" and wanted != len(cores):
        return None
    first = placement.index * threads
    return [cores[core % len(cores)] for core in range(first, first + threads)]


def set_device(device: str, threads: int) -> torch.device:
    """Set this process' device and its number of threads."""
    torch.set_num_threads(threads)
    if device != "cpu":
        torch.cuda.set_device(device)
    use_deterministic_kernels(torch.device(device))
    return torch.device(device)
