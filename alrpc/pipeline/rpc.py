"""The control plane; no other module uses torch.distributed.rpc.

The coordinator calls functions of the stages. RPC executes any code that it receives, so it must only be used on loopback or a
private network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch.distributed import rpc

from alrpc.pipeline.failures import JOIN_TIMEOUT, Disconnected, StageLost
from alrpc.pipeline.groups import INIT_METHOD


def join(rank: int, world_size: int) -> None:
    """Join the control plane; returns when every rank has joined.

    Raises:
        Disconnected: when another rank does not join in time.
    """
    # TensorPipe's shared-memory transport is not used, since it polls without a pause and so occupies a core.
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=4, rpc_timeout=JOIN_TIMEOUT, init_method=INIT_METHOD, _transports=["uv"], _channels=["basic"]
    )
    try:
        rpc.init_rpc(_name(rank), rank=rank, world_size=world_size, rpc_backend_options=options)
    except RuntimeError as error:
        raise Disconnected(f"the processes did not all meet: {_reason(error)}") from error


def leave(timeout: float) -> None:
    """Leave the control plane when every rank does; waits up to `timeout` seconds for the others.

    Raises:
        Disconnected: when another rank is lost.
    """
    try:
        rpc.shutdown(timeout=timeout)
    except RuntimeError as error:
        raise Disconnected(f"a process was gone before the end: {_reason(error)}") from error


def call(stage: int, function: Callable, *args, timeout: float = JOIN_TIMEOUT) -> Any:
    """Call a module's function on a stage and return its result.

    Raises:
        StageLost: when there is no answer within `timeout` seconds.
    """
    return Call(stage, function, *args, timeout=timeout).result()


class Call:
    """An asynchronous call, whose end can be checked without waiting."""

    def __init__(self, stage: int, function: Callable, *args, timeout: float):
        self.stage = stage
        self.timeout = timeout
        self.ended: float | None = None
        """When the call was answered or failed, on the monotonic clock, which on Linux is that of time.perf_counter too."""
        try:
            self._future = rpc.rpc_async(_name(stage), function, args=args, timeout=timeout)
        except RuntimeError as error:
            raise StageLost(stage, *_lost(error, timeout)) from error
        self._future.add_done_callback(self._end)

    def _end(self, _future) -> None:
        self.ended = time.monotonic()

    def result(self) -> Any:
        """The result of the call, waiting for it if necessary.

        Raises:
            StageLost: when there is no answer.
        """
        try:
            return self._future.wait()
        except RuntimeError as error:
            raise StageLost(self.stage, *_lost(error, self.timeout), self.ended) from error


def _name(rank: int) -> str:
    return f"stage-{rank}" if rank else "coordinator"


def _lost(error: RuntimeError, timeout: float) -> tuple[str, bool]:
    """The rest of a message that begins with the name of a stage; and whether the stage did not answer in time."""
    reason = _reason(error)
    if "set timeout" in reason:
        return f"has not answered for {timeout:.0f} s: it is frozen, or its host or the network is lost", True
    return f"is gone: connection lost ({reason})", False


def _reason(error: RuntimeError) -> str:
    return str(error).partition("\n")[0].partition(" (this error originated")[0]
