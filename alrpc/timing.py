"""How much time a process spends on what."""

from __future__ import annotations

import time
from collections.abc import Sequence

from alrpc.spans import COMPUTING, SpanRecorder

WORKING = (*COMPUTING, "handling", "checkpoint")
"""handling: what else there is to do with a packet; checkpoint: copying the state that a thread then writes."""
WAITING = ("waiting_to_receive", "waiting_to_send")
STATES = (*WORKING, *WAITING, "testing")


class Timing:
    """A process is in one state at a time; entering the next one closes the books of the last.

    On a GPU, where kernels run behind the process that queued them, seconds count the queueing.
    """

    def __init__(self):
        self.spans = SpanRecorder()
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
        self.spans.enter(state, part, now)
        if left is not None:
            self._seconds["testing" if self._testing else left] += now - self._since
        self._state, self._since = state, now
        return left

    def begin_packet(self, kind: str, epoch: int, step: int, ready: float | None = None) -> None:
        """Work on the next packet begins; it has been there since `ready`, a moment of this process' clock (None: now)."""
        self.spans.begin_packet(kind, epoch, step, ready or time.perf_counter())
        self.enter("handling")

    def test(self, testing: bool) -> None:
        """Charge all time to `testing`, whatever state it is spent in, until this is switched off again."""
        self.enter(self._state)
        self._testing = testing

    def move(self, source: str, destination: str, seconds: float) -> None:
        """Charge seconds of one state to another one, where they turned out to belong."""
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
    """The seconds in which packets are worked on, checkpoints not included."""
    return sum(seconds[state] for state in WORKING if state != "checkpoint")


def idle_share(processes: Sequence[dict[str, float]]) -> float | None:
    """The share of their training time in which processes wait, from each one's seconds in every state; None without any."""
    waits = sum(seconds[state] for seconds in processes for state in WAITING)
    works = sum(seconds[state] for seconds in processes for state in WORKING)
    return waits / (waits + works) if waits + works else None
