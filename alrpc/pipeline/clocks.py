"""How far each stage's clock is from the coordinator's, so that moments of several hosts fit on one time axis."""

from __future__ import annotations

import time
from collections.abc import Callable

from alrpc.events import Clock
from alrpc.pipeline import endpoint, rpc
from alrpc.pipeline.failures import StageLost

SAMPLES = 8  # of the remote clock, for an estimate; the answer that came fastest counts
EVERY = 10.0  # seconds between estimates: quartz clocks part by some 10 µs a second


def estimate(asked: float, told: float, answered: float) -> tuple[float, float]:
    """A remote clock's offset and its uncertainty, in seconds, from what it told between two moments of one's own.

    The remote clock was read somewhere between question and answer; in the middle of them the error is at most half the round
    trip (F. Cristian, Probabilistic clock synchronization, Distributed Computing 3, 1989). An offset within the uncertainty is
    none: processes of one host share a clock.
    """
    uncertainty = (answered - asked) / 2
    offset = told - (asked + answered) / 2
    return (offset if abs(offset) > uncertainty else 0.0), uncertainty


class Clocks:
    """Estimates of all stages' clocks, from questions that are under way while the coordinator listens to the stages."""

    def __init__(self, stages: int, call: Callable[..., rpc.Call] = rpc.Call, now: Callable[[], float] = time.monotonic):
        self._call, self._now = call, now
        self._calls: dict[int, tuple[float, rpc.Call]] = {}
        self._answers: dict[int, list[tuple[float, float]]] = {stage: [] for stage in range(1, stages + 1)}
        self._due = dict.fromkeys(self._answers, 0.0)

    def poll(self, timeout: float) -> list[Clock]:
        """Call those that are due, take in those that have answered; gives an event for each estimate that is complete.

        A stage that does not answer is left alone: that is for others to tell.
        """
        events = []
        for stage, answers in self._answers.items():
            if stage in self._calls:
                asked, call = self._calls[stage]
                if call.ended is None:
                    continue
                del self._calls[stage]
                try:
                    answers.append(estimate(asked, call.result(), call.ended))
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
                    self._calls[stage] = self._now(), self._call(stage, endpoint.read_clock, timeout=timeout)
                except StageLost:
                    self._due[stage] = float("inf")
        return events
