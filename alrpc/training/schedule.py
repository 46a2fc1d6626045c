"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(schedule: str, start: float, end: float, step: int, steps: int) -> float:
    """The rate for optimizer step `step` of 0 … steps - 1: `start` at the first, `end` at the last.

    Cosine annealing follows Loshchilov & Hutter, SGDR, 2017, equation 5, without restarts.
    """
    if schedule == "constant" or steps < 2:
        return start
    passed = step / (steps - 1)
    if schedule == "cosine":
        passed = (1 - math.cos(math.pi * passed)) / 2
    return start + (end - start) * passed
