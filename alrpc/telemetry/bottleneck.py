"""Finds the bottleneck of a pipeline, and what would help."""

from __future__ import annotations

import math

from alrpc.timing import STATES, WORKING

BUSY = 0.85  # least share of its time that a stage works if the others wait for it
UNEVEN = 1.1  # least ratio of the most to the mean work that is reported
WAITS = 0.15  # least share of its time that a stage waits, for a wait that is reported
HELD = 0.7  # least share of the time between two micro-batches that a link's window accounts for, and most that work may, if it is the link
SETTLED = 20  # micro-batches, after which the filling of the pipeline no longer counts


def training(seconds: dict[str, float]) -> float:
    """Seconds that a stage spent on training, evaluation excluded."""
    return sum(seconds[state] for state in STATES if state != "testing")


def share(seconds: dict[str, float], *states: str) -> float:
    """The share of a stage's training time that it spent in these states."""
    return sum(seconds[state] for state in states) / (training(seconds) or 1.0)


def find_bottleneck(seconds: dict[int, dict[str, float]], components: dict[int, list[int]]) -> tuple[int | None, str]:
    """Find the stage that the others wait for.

    Args:
        seconds: for each stage, from 1, its seconds in each of `alrpc.timing.STATES`, over the same micro-batches for all.
        components: the numbers of each stage's components.

    Returns:
        The stage's number, or None where the bottleneck is no stage or there is none; and a sentence, "" before any is known.
    """
    if len(seconds) < 2 or not all(training(each) for each in seconds.values()):
        return None, ""
    work = {stage: sum(each[state] for state in WORKING) for stage, each in seconds.items()}
    slowest = max(work, key=work.get)
    mean = sum(work.values()) / len(work)
    busy = {stage: share(each, *WORKING) for stage, each in seconds.items()}
    if busy[slowest] >= BUSY:
        if work[slowest] < UNEVEN * mean:
            return None, "the stages are about equally busy"
        others = [value for stage, value in busy.items() if stage != slowest]
        cure = (
            f"a more even split would be up to {work[slowest] / mean:.1f} times as fast: try alrpc plan"
            if len(components.get(slowest, [])) > 1
            else "it has a single component, so the others could share fewer stages: try alrpc plan"
        )
        rest = f"the {'others' if len(others) > 1 else 'other'} {sum(others) / len(others):.0%}"
        return slowest, f"bottleneck: stage {slowest} works {busy[slowest]:.0%} of its time, {rest}; {cure}"
    for stage, each in sorted(seconds.items()):
        waits = share(each, "waiting_to_receive")
        if waits > WAITS and stage == 1:
            return None, f"bottleneck: the loader of data; stage 1 waits for it {waits:.0%} of its time: try data.workers"
        if stage > 1 and waits > WAITS and (sends := share(seconds[stage - 1], "waiting_to_send")) > WAITS:
            what = f"stage {stage - 1} waits to send {sends:.0%} of its time, stage {stage} to receive {waits:.0%}"
            return None, f"bottleneck: the way from stage {stage - 1} to stage {stage}; {what}"
    return None, "no stage is a bottleneck"


def find_slow_link(seconds: dict[int, dict[str, float]], steps: int, round_trips: dict[int, float], window: int) -> str:
    """A sentence about a link whose round trip the window does not cover, and the window that would; "" if there is none.

    A link passes at most `window` micro-batches in each round trip, since a sender learns only then that there is room again. It is
    the one to the first stage that is so far away: those behind it are as far from the coordinator.

    Args:
        seconds: as for `find_bottleneck`.
        steps: the number of micro-batches.
        round_trips: for each stage, the seconds of a round trip between the coordinator and it.
        window: `pipeline.window`.
    """
    if steps < SETTLED or not round_trips or not all(training(each) for each in seconds.values()):
        return ""
    period = max(map(training, seconds.values())) / steps
    work = max(sum(each[state] for state in WORKING) for each in seconds.values()) / steps
    stage = max(sorted(round_trips), key=lambda number: round_trips[number] - round_trips.get(number - 1, 0.0))
    trip = round_trips[stage]
    if work > HELD * period or trip / window < HELD * period:
        return ""
    return (
        f"bottleneck: the link to stage {stage}; its round trip takes {1000 * trip:.0f} ms, in which {window} micro-batches pass and "
        f"the slowest stage could train on {trip / work:.0f}: set pipeline.window={math.ceil(trip / work) + 1}"
    )
