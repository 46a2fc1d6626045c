"""Whom the coordinator polls, and whom it names, with stages that are played by a script and a clock that is set by hand."""

import itertools
from concurrent.futures import Future
from itertools import chain, repeat

import pytest

from alrpc.errors import StageFailed
from alrpc.events import Failure, Finished
from alrpc.pipeline import endpoint
from alrpc.pipeline.failures import BLAME_DELAY, FAILURE_WINDOW, PeerLost, StageLost
from alrpc.pipeline.feeder import FeedStatus
from alrpc.pipeline.liveness import Watch
from alrpc.pipeline.monitor import Evidence, Health, blame, monitor
from alrpc.pipeline.placement import Placement


def placement(stage: int) -> Placement:
    return Placement(stage=stage, host=f"host-{stage}", pid=1, index=0, neighbours=1, gpus=0, log=f"stage-{stage}.log")


def watch(*scripts, feeding=None) -> list[int]:
    """Each script holds, poll by poll, a stage's events or the error that meets the call; gives the stages in order of the polls."""
    turns = [chain(script, repeat([])) for script in scripts]
    polled = []

    class ScriptedCall:
        def __init__(self, stage, function, *arguments):
            self.ended, self.answer = 0.0, 0.0
            if function is not endpoint.read_clock:
                polled.append(stage)
                self.answer = next(turns[stage - 1])

        def result(self):
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    placements = [placement(n) for n in range(1, len(scripts) + 1)]
    clock = itertools.count(0.0, 0.01)  # moves on a little at each look
    health = Health(placements, FeedStatus(), Watch(range(1, len(scripts) + 1), 30, now=lambda: next(clock)))
    monitor(feeding or Future(), health, lambda event: None, ScriptedCall, lambda: next(clock), lambda seconds: None)
    return polled


def finished(stage: int) -> list:
    return [Finished(stage, 0)]


def test_a_stage_that_has_finished_is_polled_until_all_have():
    polled = watch([finished(1)], [[], [], [], finished(2)])
    assert polled.count(1) == polled.count(2) == 4


def test_the_earliest_stage_that_failed_is_named():
    whole = r"stage 1 \(rank 1, host host-1\) failed: nan; last packet: none; log: stage-1\.log"
    late, early = [[], [], [Failure(1, "nan", False)]], [[Failure(2, "also nan", False)]]
    with pytest.raises(StageFailed, match=whole) as raised:
        watch(late, early)
    assert not raised.value.retryable


def test_the_stage_that_was_lost_first_is_named():
    later, first = (StageLost(n, "is gone: connection lost", when=when) for n, when in ((1, 2.0), (2, 1.0)))
    with pytest.raises(StageFailed, match=r"stage 2 \(rank 2, host host-2\) is gone: connection lost"):
        watch([later], [first])


def test_a_cut_feed_is_told_when_nobody_knows_more():
    feeding = Future()
    feeding.set_exception(PeerLost("sending to rank 1: connection closed"))
    with pytest.raises(StageFailed, match=r"stage 1 \(rank 1, host host-1\) is gone: sending to rank 1"):
        watch([], [], feeding=feeding)


def test_what_the_feeding_thread_cannot_do_is_raised_as_it_is():
    feeding = Future()
    feeding.set_exception(ValueError("no data"))
    with pytest.raises(ValueError, match="no data"):
        watch([], [], feeding=feeding)


def test_nobody_is_blamed_before_those_who_may_know_more_have_spoken():
    lost = Evidence(lost={2: StageLost(2, "is gone: connection lost", when=10.0)})
    assert blame(lost, 10.0 + BLAME_DELAY - 0.1) is None
    assert blame(lost, 10.0 + BLAME_DELAY + 0.1) == (2, "is gone: connection lost", True)
    failed = Evidence(failed={3: (10.0, Failure(3, "nan", False))})
    assert blame(failed, 10.0 + FAILURE_WINDOW - 0.1) is None
    assert blame(failed, 10.0 + FAILURE_WINDOW + 0.1) == (3, "failed: nan", False)


def test_of_a_host_that_falls_silent_the_first_stage_is_named_sooner_than_one_whose_connection_breaks():
    silent = {stage: StageLost(stage, "has not answered for 8 s", silent=True, when=10.0 - stage) for stage in (2, 3)}
    assert blame(Evidence(lost=silent), 10.0) == (2, "has not answered for 8 s", True)


def test_a_failure_that_was_reported_goes_before_what_follows_from_it():
    evidence = Evidence(failed={3: (10.0, Failure(3, "nan", True))}, lost={2: StageLost(2, "is gone", when=1.0)})
    assert blame(evidence, 20.0) == (3, "failed: nan", True)
