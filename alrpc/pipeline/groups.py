"""The process groups of the data plane: gloo between all ranks, NCCL between neighbours on GPUs; and the rendezvous."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator

import torch
from torch import distributed
from torch.distributed.rendezvous import register_rendezvous_handler

from alrpc.pipeline.door import door_closed_after
from alrpc.pipeline.failures import P2P_TIMEOUT, PeerLost
from alrpc.pipeline.private_network import inside

SCHEME = "alrpc"
SHARING = "NCCL_MULTI_RANK_GPU_ENABLE"  # lets several processes share a GPU, from NCCL 2.30 on
INIT_METHOD = f"{SCHEME}://"
"""The init_method of the control plane and the data plane."""
STORE = "ALRPC_STORE"
"""The environment variable with the path of the rendezvous' file, if the run has one."""


def rendezvous_store() -> distributed.Store:
    """The rendezvous store of the processes of this attempt: a file if the launcher gives one, else torchrun's.

    After a restart torchrun's static rendezvous returns the same store, which still has the keys of the previous attempt, so
    each attempt has its own prefix.
    """
    if path := os.environ.get(STORE):
        return distributed.FileStore(path)
    store, _, _ = next(distributed.rendezvous("env://"))
    return distributed.PrefixStore(f"alrpc-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _rendezvous(url: str, **_) -> Iterator[tuple[distributed.Store, int, int]]:
    yield rendezvous_store(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


register_rendezvous_handler(SCHEME, _rendezvous)


def join_group(backend: str, timeout: datetime.timedelta | None = None) -> None:
    """Join the default process group; returns when every rank has joined."""

    def join() -> None:
        with door_closed_after():
            distributed.init_process_group(backend, init_method=INIT_METHOD, timeout=timeout)

    inside(join)


Groups = dict[tuple[int, int], distributed.ProcessGroup]
"""NCCL groups by the ranks of a link's sender and receiver."""


def open_data_plane(rank: int, links: list[tuple[int, int]], transport: str, device: torch.device) -> Groups:
    """Join gloo's process group and, if the transport is NCCL, one NCCL group for each of this rank's links between stages.

    Every link has its own NCCL communicator, so that a waiting receive on one link does not block a send on the other, and the
    threads of a stage never share a communicator. The coordinator is in none of them, since its host may have no GPU.

    Args:
        links: the links between stages, by the ranks of sender and receiver; the same in every rank.

    Returns:
        NCCL groups of this rank's links; empty for gloo. The function returns when every rank has joined.

    Raises:
        PeerLost: when another rank is lost before it has joined.
    """
    try:
        join_group("gloo", datetime.timedelta(seconds=P2P_TIMEOUT))
        return open_groups(rank, links, device) if transport == "nccl" else {}
    except RuntimeError as error:
        raise PeerLost(f"joining the data plane: {error}") from error


def open_groups(rank: int, links: list[tuple[int, int]], device: torch.device) -> Groups:
    """Open an NCCL group for each link; returns those of this rank's links."""
    os.environ.setdefault(SHARING, "1")  # has no effect if every stage has its own GPU
    groups, timeout = {}, datetime.timedelta(seconds=P2P_TIMEOUT)
    for link in links:  # every rank takes part in opening each group, since torch names them by how many it has opened
        own = rank in link
        group = distributed.new_group(list(link), backend="nccl", timeout=timeout, device_id=device if own else None)
        if own:
            groups[link] = group
    return groups


def links_between(stages: int, feedback: bool) -> list[tuple[int, int]]:
    """The links between stages, by the ranks of sender and receiver; with feedback there is one back beside each."""
    pairs = [(rank, rank + 1) for rank in range(1, stages)]
    return [link for first, second in pairs for link in ((first, second), (second, first))] if feedback else pairs


def close_data_plane() -> None:
    distributed.destroy_process_group()
