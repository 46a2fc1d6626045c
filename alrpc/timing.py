"""How much time a process spends in each of its states."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, get_args

from alrpc.spans import COMPUTING, SpanRecorder

State = Literal["forward", "backward", "update", "handling", "checkpoint", "waiting_to_receive", "waiting_to_send", "testing"]
"""One of STATES."""
WORKING = (*COMPUTING, "handling", "checkpoint")
"""handling: all other work on a packet; checkpoint: copying the state, which a thread then writes."""
WAITING = ("waiting_to_receive", "waiting_to_send")
STATES = get_args(State)


class Timing:
    """The seconds that a process spends in each state. It is in one state at a time; entering a state ends the previous one.

    On a GPU, where kernels run asynchronously, the seconds are those of queueing the kernels.
    """

    def __init__(self):
        self.spans = SpanRecorder()
        self._seconds = dict.fromkeys(STATES, 0.0)
        self._state: str | None = None
        self._since = 0.0
        self._testing = False

    def enter(self, state: str | None, part: int = 0) -> str | None:
        """Enter one of STATES, or None for time that is not counted; returns the previous state.

        Args:
            part: the part of the packet that is worked on: the number of a component, or of one of the micro-batches into
                which a schedule cuts the packet, from 1.
        """
        now, left = time.perf_counter(), self._state
        self.spans.enter(state, part, now)
        if left is not None:
            self._seconds["testing" if self._testing else left] += now - self._since
        self._state, self._since = state, now
        return left

    def begin_packet(self, kind: str, epoch: int, step: int, ready: float | None = None) -> None:
        """Begin to work on the next packet, which was available from `ready` on, a time of this process' clock (None: now)."""
        self.spans.begin_packet(kind, epoch, step, time.perf_counter() if ready is None else ready)
        self.enter("handling")

    def test(self, testing: bool) -> None:
        """Charge all time to `testing` until switched off, whatever the state."""
        self.enter(self._state)
        self._testing = testing

    def move(self, source: str, destination: str, seconds: float) -> None:
        """Move seconds that were charged to one state to another one."""
        self._seconds[source] -= seconds
        self._seconds[destination] += seconds

    def state(self) -> tuple[str | None, float]:
        """The current state and the seconds since it was entered; may be called from another thread."""
        return self._state, time.perf_counter() - self._since if self._state is not None else 0.0

    def read(self) -> dict[str, float]:
        """The seconds spent in each state up to now; may be called from another thread."""
        seconds = dict(self._seconds)
        if self._state is not None:
            seconds["testing" if self._testing else self._state] += time.perf_counter() - self._since
        return seconds


def computing(seconds: dict[str, float]) -> float:
    """The seconds spent working on packets, without checkpoints."""
    return sum(seconds[state] for state in WORKING if state != "checkpoint")


def idle_share(processes: Sequence[dict[str, float]]) -> float | None:
    """The share of training time that the processes spend waiting, from the seconds of each in every state; None if there are none."""
    waits = sum(seconds[state] for seconds in processes for state in WAITING)
    works = sum(seconds[state] for seconds in processes for state in WORKING)
    return waits / (waits + works) if waits + works else None
