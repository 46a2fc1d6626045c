"""The control plane; no other module uses torch.distributed.rpc.

The coordinator calls functions of the stages. RPC executes what it receives: see `seal` and `door` for what it may receive, and
SECURITY.md for what remains.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, rpc
from torch.distributed.rpc import constants

from alrpc.pipeline.door import door_closed_after
from alrpc.pipeline.failures import JOIN_TIMEOUT, LEAVE_TIMEOUT, Disconnected, StageLost
from alrpc.pipeline.groups import INIT_METHOD, rendezvous_store
from alrpc.pipeline.private_network import inside

NOTHING = torch.zeros(1)


def join(rank: int, world_size: int) -> None:
    """Join the control plane; returns when every rank has joined.

    Raises:
        Disconnected: when another rank does not join in time.
    """
    # TensorPipe's shared-memory transport is not used, since it polls without a pause and so occupies a core.
    # Each outstanding answer to a process whose interpreter lock is kept occupies a thread, and a ping needs one more.
    threads = 4 if rank else 4 * world_size
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=threads, rpc_timeout=JOIN_TIMEOUT, init_method=INIT_METHOD, _transports=["uv"], _channels=["basic"]
    )

    # Of the group by which the processes first meet, which would wait for 25 days.
    constants.DEFAULT_PROCESS_GROUP_TIMEOUT = timedelta(seconds=JOIN_TIMEOUT)

    def meet() -> None:
        publish_names(world_size)
        with door_closed_after():
            rpc.init_rpc(_name(rank), rank=rank, world_size=world_size, rpc_backend_options=options)

    try:
        inside(meet)
    except RuntimeError as error:
        raise Disconnected(f"the processes did not all meet: {_reason(error)}") from error


def publish_names(world_size: int) -> None:
    """Publish the names of all ranks where RPC looks for them.

    Otherwise its agent would wait for each rank to publish its own, and keep the interpreter lock all the while, so that this
    process could not even end if one of them were lost.
    """
    store = PrefixStore("rpc_prefix_0", rendezvous_store())
    for rank in range(world_size):
        store.set(f"names/{rank}", _name(rank))


def leave() -> None:
    """Leave the control plane when every rank does; waits up to LEAVE_TIMEOUT for the others.

    Raises:
        Disconnected: when another rank is lost.
    """
    leaving = ThreadPoolExecutor(1, "leave").submit(rpc.shutdown, timeout=LEAVE_TIMEOUT)  # not all that it waits for is limited
    try:
        leaving.result(LEAVE_TIMEOUT)
    except TimeoutError as error:
        raise Disconnected("a process was silent at the end") from error
    except RuntimeError as error:
        raise Disconnected(f"a process was gone before the end: {_reason(error)}") from error


def ping(rank: int) -> Call:
    """Call a process for a sign of life. It needs no interpreter lock to answer, since native threads compute what torch has built in."""
    return Call(rank, torch.neg, NOTHING)


class Call:
    """An asynchronous call to a module's function of a stage, whose end can be checked without waiting.

    It waits as long as the connection holds, since time in which this process was suspended must not count: `Watch` tells
    whether the stage lives.
    """

    def __init__(self, stage: int, function: Callable, *args, timeout: float = 0):
        self.stage = stage
        self.ended: float | None = None
        """When the call was answered or failed, on the monotonic clock, which on Linux is that of time.perf_counter too."""
        try:
            self._future = rpc.rpc_async(_name(stage), function, args=args, timeout=timeout)
        except RuntimeError as error:
            raise StageLost(stage, f"is gone: connection lost ({_reason(error)})") from error
        self._future.add_done_callback(self._end)

    def _end(self, _future) -> None:
        self.ended = time.monotonic()

    def result(self) -> Any:
        """The result of the call, waiting for it if necessary.

        Raises:
            StageLost: when the connection is lost.
        """
        try:
            return self._future.wait()
        except RuntimeError as error:
            raise StageLost(self.stage, f"is gone: connection lost ({_reason(error)})", when=self.ended) from error


def _name(rank: int) -> str:
    return f"stage-{rank}" if rank else "coordinator"


def _reason(error: RuntimeError) -> str:
    return str(error).partition("\n")[0].partition(" (this error originated")[0]
