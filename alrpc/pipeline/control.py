"""The control plane: the only module that knows torch.distributed.rpc.

The coordinator calls, the stages answer. RPC runs what it is sent, so it belongs on loopback or a private network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch.distributed import rpc

GATHERING = 180.0  # seconds that a process waits for the others to start
SILENCE = 30.0  # seconds without an answer after which a process counts as lost


def join(rank: int, world_size: int) -> None:
    """Join the control plane; returns when every rank has.

    Raises:
        Disconnected: when another one does not come.
    """
    # TensorPipe's shared-memory transport polls without a pause and takes a core's time; its socket transport sleeps.
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=4, rpc_timeout=GATHERING, _transports=["uv"], _channels=["basic"]
    )
    try:
        rpc.init_rpc(_name(rank), rank=rank, world_size=world_size, rpc_backend_options=options)
    except RuntimeError as error:
        raise Disconnected(f"the processes did not all meet: {_reason(error)}") from error


def leave() -> None:
    """Leave when every rank does.

    Raises:
        Disconnected: when another one is gone.
    """
    try:
        rpc.shutdown()
    except RuntimeError as error:
        raise Disconnected(f"a process was gone before the end: {_reason(error)}") from error


class Disconnected(Exception):
    """The control plane broke while it was joined or left: the consequence of a failure, not its cause."""


def call(stage: int, function: Callable, *args) -> Any:
    """Run a module's function on a stage and return what it returns.

    Raises:
        StageLost: when there is no answer.
    """
    return Call(stage, function, *args).result()


class StageLost(Exception):
    """A stage does not answer."""

    def __init__(self, stage: int, reason: str, when: float | None = None):
        super().__init__(reason)
        self.stage = stage
        self.when = when or time.monotonic()


class Call:
    """A call under way, that can be looked at without waiting."""

    def __init__(self, stage: int, function: Callable, *args):
        self.stage = stage
        self.ended: float | None = None
        """When it was answered or broke, on the monotonic clock."""
        try:
            self._future = rpc.rpc_async(_name(stage), function, args=args, timeout=SILENCE)
        except RuntimeError as error:
            raise StageLost(stage, _reason(error)) from error
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
            raise StageLost(self.stage, _reason(error), self.ended) from error


def _name(rank: int) -> str:
    return f"stage-{rank}" if rank else "coordinator"


def _reason(error: RuntimeError) -> str:
    first = str(error).partition("\n")[0].partition(" (this error originated")[0]
    return f"no answer for {SILENCE:.0f} s" if "set timeout" in first else f"connection lost ({first})"
