"""Which components a stage has, and which device it runs on."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from alrpc.config import Config
from alrpc.errors import UserError
from alrpc.pipeline.groups import SHARING
from alrpc.system import use_deterministic_kernels

SHARING_SINCE = (2, 30)


def split_components(components: int, stages: int, split: Sequence[int] | None) -> list[list[int]]:
    """The component numbers (from 1) of each stage, consecutive, as even as can be or as the split says.

    Raises:
        UserError: naming pipeline.stages or pipeline.split.
    """
    if split is not None:
        if len(split) != stages:
            raise UserError(f"pipeline.split: got {list(split)}, {len(split)} entries for {stages} stages; give one for each")
        if sum(split) != components:
            raise UserError(
                f"pipeline.split: got {list(split)}, {sum(split)} components; it must add up to the model's {components}"
            )
        sizes = list(split)
    else:
        if stages > components:
            raise UserError(f"pipeline.stages: got {stages}, but the model has {components} components; use 1 to {components}")
        even, rest = divmod(components, stages)
        sizes = [even + (stage < rest) for stage in range(stages)]
    ends = [sum(sizes[: stage + 1]) for stage in range(stages)]
    return [list(range(end - size + 1, end + 1)) for end, size in zip(ends, sizes, strict=True)]


def check_pipeline(config: Config, components: int) -> None:
    """Refuse a pipeline that a network of so many components does not fill.

    Raises:
        UserError: naming pipeline.stages or pipeline.split.
    """
    split = config.pipeline.split
    split_components(components, config.pipeline.stages, None if split == "auto" else split)


@dataclass(frozen=True)
class Placement:
    """Where a stage's process is: what it tells the coordinator before it gets its work."""

    stage: int
    host: str
    pid: int
    index: int
    """0 for the first stage on its host."""
    neighbours: int
    """Stages on its host, itself included."""
    gpus: int
    log: str
    shares: bool = False
    """Whether its NCCL lets several processes have one GPU."""


def local_placement(rank: int, log: str) -> Placement:
    """This stage's place, from the environment that torchrun (or `alrpc launch`) gives every process."""
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
    """NCCL 2.30 and later let several processes have one GPU if they are told to; older ones refuse."""
    there = torch.cuda.is_available() and distributed.is_nccl_available()
    return there and torch.cuda.nccl.version() >= SHARING_SINCE and os.environ.get(SHARING, "1") == "1"


def choose_devices(places: Sequence[Placement], wanted: str) -> tuple[list[str], str]:
    """A device for each stage, and what carries packets between stages: "nccl" or "gloo".

    Stages that share a GPU exchange packets through host memory, unless their NCCL lets them share.

    Raises:
        UserError: when a GPU is wanted on a host that has none.
    """
    if wanted == "cpu" or (wanted == "auto" and not all(place.gpus for place in places)):
        return ["cpu"] * len(places), "gloo"
    possible = all(place.shares for place in places) or not any(map(must_share, places))
    for place in places:
        if place.gpus == 0:
            raise UserError(f"device: got cuda, but stage {place.stage} finds no GPU on host {place.host}; use cpu or auto")
    return [f"cuda:{place.index % place.gpus}" for place in places], "nccl" if possible else "gloo"


def must_share(place: Placement) -> bool:
    """Whether a stage's host has fewer GPUs than stages."""
    return place.gpus < place.neighbours


def describe_transport(places: Sequence[Placement], devices: Sequence[str], transport: str) -> str | None:
    """How packets travel between stages on GPUs, and why so; None on CPUs."""
    if devices[0] == "cpu":
        return None
    share = any(map(must_share, places))
    if transport == "gloo":
        return "gloo, through host memory: stages share a GPU, which NCCL allows from 2.30 on"
    return "NCCL, stages share a GPU" if share else "NCCL"


def choose_cores(place: Placement, threads: int, pin: str) -> list[int] | None:
    """The cores for a stage on a CPU, or None to leave the choice to the operating system.

    With "auto" only a machine that its stages fill exactly is divided: on a larger one the cores may be somebody else's,
    on a smaller one the operating system shares them out better.
    """
    if pin == "never" or not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    wanted = place.neighbours * threads
    if pin == "auto" and wanted != len(cores):
        return None
    first = place.index * threads
    return [cores[core % len(cores)] for core in range(first, first + threads)]


def set_device(device: str, threads: int) -> torch.device:
    """Bind this process to its device and its number of threads."""
    torch.set_num_threads(threads)
    if device != "cpu":
        torch.cuda.set_device(device)
    use_deterministic_kernels(torch.device(device))
    return torch.device(device)
