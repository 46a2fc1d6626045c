"""The offset of each stage's clock from the coordinator's, so that spans of several hosts share one time axis."""

from __future__ import annotations

import time
from collections.abc import Callable

from alrpc.events import Clock
from alrpc.pipeline import endpoint, rpc
from alrpc.pipeline.failures import StageLost

SAMPLES = 8  # readings of the remote clock for one estimate; the fastest answer counts
EVERY = 10.0  # seconds between estimates; quartz clocks drift apart by about 10 µs a second


def estimate(sent: float, remote: float, received: float) -> tuple[float, float]:
    """The offset of a remote clock and its uncertainty, in seconds.

    The remote clock was read at some time between request and answer. If that time is taken to be their middle, the error is at
    most half the round trip (F. Cristian, Probabilistic clock synchronization, Distributed Computing 3, 1989). An offset smaller
    than the uncertainty is taken as 0, since processes on one host share a clock.

    Args:
        sent, received: times of request and answer on this process' clock.
        remote: the reading of the remote clock.
    """
    uncertainty = (received - sent) / 2
    offset = remote - (sent + received) / 2
    return (offset if abs(offset) > uncertainty else 0.0), uncertainty


class Clocks:
    """Estimates the clocks of all stages, by asynchronous calls during the coordinator's polling."""

    def __init__(self, stages: int, call: Callable[..., rpc.Call] = rpc.Call, now: Callable[[], float] = time.monotonic):
        self._call, self._now = call, now
        self._calls: dict[int, tuple[float, rpc.Call]] = {}
        self._answers: dict[int, list[tuple[float, float]]] = {stage: [] for stage in range(1, stages + 1)}
        self._due = dict.fromkeys(self._answers, 0.0)

    def poll(self) -> list[Clock]:
        """Call the stages that are due, read the answers, and return an event for each complete estimate.

        A stage that does not answer is not called again; the monitor's own calls detect its loss.
        """
        events = []
        for stage, answers in self._answers.items():
            if stage in self._calls:
                sent, call = self._calls[stage]
                if call.ended is None:
                    continue
                del self._calls[stage]
                try:
                    answers.append(estimate(sent, call.result(), call.ended))
                except StageLost:
                    self._due[stage] = float("inf")
                    continue
            if len(answers) == SAMPLES:
                offset, uncertainty = min(answers, key=lambda answer: answer[1])
                events.append(Clock(stage, self._now(), offset, uncertainty))
                answers.clear()
                self._due[stage] = self._now() + EVERY
            if self._now() >= self._due[stage]:
                try:
                    self._calls[stage] = self._now(), self._call(stage, endpoint.read_clock)
                except StageLost:
                    self._due[stage] = float("inf")
        return events
