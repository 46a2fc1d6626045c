"""The control plane: the only module that knows torch.distributed.rpc.

The coordinator calls, the stages answer. RPC runs what it is sent, so it belongs on loopback or a private network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch.distributed import rpc

from alrpc.pipeline.meeting import MEETING

SILENT = "has not answered"
GATHERING = 180.0  # seconds that a process waits for the others to start


def join(rank: int, world_size: int) -> None:
    """Join the control plane; returns when every rank has.

    Raises:
        Disconnected: when another one does not come.
    """
    # TensorPipe's shared-memory transport polls without a pause and takes a core's time; its socket transport sleeps.
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=4, rpc_timeout=GATHERING, init_method=MEETING, _transports=["uv"], _channels=["basic"]
    )
    try:
        rpc.init_rpc(_name(rank), rank=rank, world_size=world_size, rpc_backend_options=options)
    except RuntimeError as error:
        raise Disconnected(f"the processes did not all meet: {_reason(error)}") from error


def leave(patience: float) -> None:
    """Leave when every rank does; waits so many seconds for the others.

    Raises:
        Disconnected: when another one is gone.
    """
    try:
        rpc.shutdown(timeout=patience)
    except RuntimeError as error:
        raise Disconnected(f"a process was gone before the end: {_reason(error)}") from error


class Disconnected(Exception):
    """The control plane broke while it was joined or left: the consequence of a failure, not its cause."""


def call(stage: int, function: Callable, *args, patience: float = GATHERING) -> Any:
    """Run a module's function on a stage and return what it returns.

    Raises:
        StageLost: when there is no answer within `patience` seconds.
    """
    return Call(stage, function, *args, patience=patience).result()


class StageLost(Exception):
    """A stage does not answer."""

    def __init__(self, stage: int, reason: str, when: float | None = None):
        super().__init__(reason)
        self.stage = stage
        self.when = when or time.monotonic()


class Call:
    """A call under way, that can be looked at without waiting."""

    def __init__(self, stage: int, function: Callable, *args, patience: float):
        self.stage = stage
        self.patience = patience
        self.ended: float | None = None
        """When it was answered or broke, on the monotonic clock (that of time.perf_counter too)."""
        try:
            self._future = rpc.rpc_async(_name(stage), function, args=args, timeout=patience)
        except RuntimeError as error:
            raise StageLost(stage, _lost(error, patience)) from error
        self._future.add_done_callback(self._end)

    def _end(self, _future) -> None:
        self.ended = time.monotonic()

    def result(self) -> Any:
        """What the call returned, waiting for it if need be.

        Raises:
            StageLost: when there is no answer.
        """
        try:
            return self._future.wait()
        except RuntimeError as error:
            raise StageLost(self.stage, _lost(error, self.patience), self.ended) from error


def _name(rank: int) -> str:
    return f"stage-{rank}" if rank else "coordinator"


def _lost(error: RuntimeError, patience: float) -> str:
    """For a message that begins with the name of a stage."""
    reason = _reason(error)
    if "set timeout" in reason:
        return f"{SILENT} for {patience:.0f} s: it is frozen, or its host or the network is lost"
    return f"is gone: connection lost ({reason})"


def _reason(error: RuntimeError) -> str:
    return str(error).partition("\n")[0].partition(" (this error originated")[0]
