"""Finds the bottleneck of a pipeline, and what would help."""

from __future__ import annotations

from alrpc.timing import STATES, WORKING

BUSY = 0.85  # least share of its time that a stage works if the others wait for it
UNEVEN = 1.1  # least ratio of the most to the mean work that is reported
WAITS = 0.15  # least share of its time that a stage waits, for a wait that is reported


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
