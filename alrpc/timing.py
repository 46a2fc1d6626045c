"""How much time a process spends on what, and the most memory it has held."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path

import torch

from alrpc.moments import COMPUTING, Moments

WORKING = (*COMPUTING, "handling", "checkpoint")
"""handling: what else there is to do with a packet; checkpoint: copying the state that a thread then writes."""
WAITING = ("waiting_to_receive", "waiting_to_send")
STATES = (*WORKING, *WAITING, "testing")


class Timing:
    """A process is in one state at a time; entering the next one closes the books of the last.

    On a GPU, where kernels run behind the process that queued them, seconds count the queueing.
    """

    def __init__(self):
        self.moments = Moments()
        self._seconds = dict.fromkeys(STATES, 0.0)
        self._state: str | None = None
        self._since = 0.0
        self._testing = False

    def enter(self, state: str | None, part: int = 0) -> str | None:
        """Enter a state of STATES, or None for a time that counts for nothing; returns the one that was left.

        Args:
            part: what of the packet is worked on: a component's number, or that of one of the micro-batches into which a
                schedule cuts it, from 1.
        """
        now, left = time.perf_counter(), self._state
        self.moments.enter(state, part, now)
        if left is not None:
            self._seconds["testing" if self._testing else left] += now - self._since
        self._state, self._since = state, now
        return left

    def begin_packet(self, kind: str, epoch: int, step: int, ready: float | None = None) -> None:
        """The next packet is there, since a moment of this process' clock, and is worked on from now."""
        self.moments.begin_packet(kind, epoch, step, ready or time.perf_counter())
        self.enter("handling")

    def test(self, testing: bool) -> None:
        """From now on all time is spent testing, whatever state it is spent in; or no longer."""
        self.enter(self._state)
        self._testing = testing

    def move(self, source: str, destination: str, seconds: float) -> None:
        """Book seconds of one state that turned out to belong to another."""
        self._seconds[source] -= seconds
        self._seconds[destination] += seconds

    def state(self) -> tuple[str | None, float]:
        """The state and the seconds since it was entered; may be called from another thread."""
        return self._state, time.perf_counter() - self._since if self._state is not None else 0.0

    def read(self) -> dict[str, float]:
        """Seconds in each state up to now; may be called from another thread."""
        seconds = dict(self._seconds)
        if self._state is not None:
            seconds["testing" if self._testing else self._state] += time.perf_counter() - self._since
        return seconds


def computing(seconds: dict[str, float]) -> float:
    """Of the seconds of each state, those in which packets are worked on, a checkpoint aside."""
    return sum(seconds[state] for state in WORKING if state != "checkpoint")


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak begin anew; where the system cannot, it stays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM becomes what is resident now


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak allocation for a stage on a GPU, else the process' peak resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # unlike getrusage's figure, Linux' own does not begin with the parent's
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
