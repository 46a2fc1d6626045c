"""How far each stage's clock is from the coordinator's, so that moments of several hosts fit on one time axis."""

from __future__ import annotations

import time

from alrpc.pipeline import control, mailbox

ASKED = 8  # times for an estimate; the answer that came fastest counts
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

    def __init__(self, stages: int):
        self._calls: dict[int, tuple[float, control.Call]] = {}
        self._answers: dict[int, list[tuple[float, float]]] = {stage: [] for stage in range(1, stages + 1)}
        self._due = dict.fromkeys(self._answers, 0.0)

    def listen(self, patience: float) -> list[dict]:
        """Ask those that are to be asked, hear those that have answered; gives an event for each estimate that is complete.

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
                except control.StageLost:
                    self._due[stage] = float("inf")
                    continue
            if len(answers) == ASKED:
                offset, uncertainty = min(answers, key=lambda answer: answer[1])
                events.append(
                    {"event": "clock", "stage": stage, "at": time.perf_counter(), "offset": offset, "uncertainty": uncertainty}
                )
                answers.clear()
                self._due[stage] = time.monotonic() + EVERY
            if time.monotonic() >= self._due[stage]:
                try:
                    self._calls[stage] = time.perf_counter(), control.Call(stage, mailbox.read_clock, patience=patience)
                except control.StageLost:
                    self._due[stage] = float("inf")
        return events
