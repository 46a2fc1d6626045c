"""The validation of a run: which epoch is best, when training ends early, and what the feeding thread waits for to know."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

from alrpc.events import Checkpoint, Evaluation, Event, Unwritten

LOWER_IS_BETTER = frozenset({"mse"})
"""The metrics of which the lowest score is the best."""
AGAIN = 1.0  # seconds after which a wait looks whether there is still something to wait for


def best_epoch(metric: str, scores: Sequence[float]) -> int:
    """The epoch, from 1, with the best of the scores after each epoch: the earliest of several. Any number is better than nan."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return 1 + max(range(len(scores)), key=lambda index: -math.inf if math.isnan(scores[index]) else sign * scores[index])


def has_stopped(metric: str, scores: Sequence[float], patience: int | None) -> bool:
    """Whether training ends after these epochs, since the last `patience` of them were not better than the one before them."""
    return patience is not None and len(scores) > 0 and len(scores) - best_epoch(metric, scores) >= patience


class Validation:
    """What a run's events tell of its validation. One thread hears them, another waits for them.

    Args:
        exits: the score of each exit after every epoch that was trained before the run was resumed.
        step: the step from which it was resumed, whose checkpoint is there.
        find_best: finds the step of the checkpoint of the best epoch; None if there is none.
        check: called while a thread waits; raises what has gone wrong meanwhile.
    """

    def __init__(
        self,
        exits: Sequence[list[float]] = (),
        step: float = 0,
        find_best: Callable[[], int | None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ):
        self.exits = list(exits)
        """The score of each exit after every epoch."""
        self._concluded = step  # up to which step it is known what became of the checkpoints
        self._find_best, self._check = find_best, check
        self._error: Exception | None = None
        self._heard = threading.Condition()

    def hear(self, event: Event) -> None:
        """Take up an event of the run."""
        with self._heard:
            if isinstance(event, Evaluation) and event.split == "validation":
                self.exits[event.epoch - 1 :] = [event.exits]
            elif isinstance(event, Checkpoint | Unwritten):
                self._concluded = max(self._concluded, event.step)
            self._heard.notify_all()

    def fail(self, error: Exception) -> None:
        """Raise an error in whoever waits, now or later, since what is waited for does not come."""
        with self._heard:
            self._error = error
            self._heard.notify_all()

    @property
    def scores(self) -> list[float]:
        """The last exit's score after every epoch."""
        return [exits[-1] for exits in self.exits]

    def scores_of(self, epochs: int) -> list[float]:
        """The last exit's score after each of the first `epochs` epochs; waits until they are known."""
        self._wait(lambda: len(self.exits) >= epochs)
        return self.scores[:epochs]

    def best_step(self, step: int) -> int | None:
        """The step of the checkpoint of the best epoch, None if there is none; waits for the checkpoint of `step`, the last one."""
        self._wait(lambda: self._concluded >= step)
        return self._find_best()

    def _wait(self, known: Callable[[], bool]) -> None:
        with self._heard:
            while not self._heard.wait_for(lambda: self._error is not None or known(), AGAIN):
                self._check()
            if self._error is not None:
                raise self._error
