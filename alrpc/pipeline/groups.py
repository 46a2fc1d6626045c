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


def open_data_plane(rank: int, stages: int, transport: str, device: torch.device) -> dict[int, distributed.ProcessGroup]:
    """Join gloo's process group and, if the transport is NCCL, one NCCL group with each neighbouring stage.

    Every link has its own NCCL communicator, so that a waiting receive on one link does not block a send on the other, and the
    two threads of a stage never share a communicator. The coordinator is in none of them, since its host may have no GPU.

    Returns:
        NCCL groups by the neighbour's rank; empty for gloo. The function returns when every rank has joined.

    Raises:
        PeerLost: when another rank is lost before it has joined.
    """
    groups = {}
    timeout = datetime.timedelta(seconds=P2P_TIMEOUT)
    try:
        join_group("gloo", timeout)
        if transport == "nccl" and rank > 0:
            os.environ.setdefault(SHARING, "1")  # has no effect if every stage has its own GPU
            # Both ends of a link must open it at the same time, so all stages open their links in the order of the pipeline.
            for pair in ([rank - 1, rank], [rank, rank + 1]):
                if pair[0] >= 1 and pair[1] <= stages:
                    (neighbour,) = set(pair) - {rank}
                    groups[neighbour] = distributed.new_group(
                        pair, backend="nccl", timeout=timeout, use_local_synchronization=True, device_id=device
                    )
    except RuntimeError as error:
        raise PeerLost(f"joining the data plane: {error}") from error
    return groups


def close_data_plane() -> None:
    distributed.destroy_process_group()
