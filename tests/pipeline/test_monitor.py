"""Whom the coordinator listens to, and whom it names, with stages that are played by a script."""

from concurrent.futures import Future
from itertools import chain, repeat

import pytest

from alrpc.pipeline import rpc, feeder, endpoint
from alrpc.pipeline.link import PeerLost
from alrpc.pipeline.monitor import Feeding, Health
from alrpc.pipeline.placement import Place


def place(stage: int) -> Place:
    return Place(stage=stage, host=f"host-{stage}", pid=1, index=0, neighbours=1, gpus=0, log=f"stage-{stage}.log")


def listen(monkeypatch, *scripts, feeding=None) -> list[tuple[int, dict]]:
    """Each script holds, poll by poll, a stage's events or the error that meets the call; gives what was called when."""
    turns = [chain(script, repeat([])) for script in scripts]
    heard = []

    class ScriptedCall:
        def __init__(self, stage, function, *arguments, patience):
            if function is mailbox.read_clock:
                self.ended, self.answer = 0.0, 0.0
                return
            heard.append(stage)
            self.ended, self.answer = 0.0, next(turns[stage - 1])

        def result(self):
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    monkeypatch.setattr(control, "Call", ScriptedCall)
    monkeypatch.setattr(coordinator, "GRACE", 0.1)
    places = [place(n) for n in range(1, len(scripts) + 1)]
    coordinator.listen(feeding or Future(), lambda event: None, Health(places, Feeding(), 30))
    return heard


FINISHED = [{"event": "finished"}]


def test_a_stage_that_has_finished_is_called_until_all_have(monkeypatch):
    heard = listen(monkeypatch, [FINISHED], [[], [], [], FINISHED])
    assert heard.count(1) == heard.count(2) == 4


def test_the_earliest_stage_that_failed_is_named(monkeypatch):
    def failing(cause):
        return [{"event": "failure", "cause": cause, "again": False}]

    whole = r"stage 1 \(rank 1, host host-1\) failed: nan; last packet: none; log: stage-1\.log"
    with pytest.raises(coordinator.StageFailed, match=whole) as raised:
        listen(monkeypatch, [[], [], failing("nan")], [failing("also nan")])
    assert not raised.value.again


def test_the_stage_that_was_lost_first_is_named(monkeypatch):
    later, first = (control.StageLost(n, "is gone: connection lost", when) for n, when in ((1, 2.0), (2, 1.0)))
    with pytest.raises(coordinator.StageFailed, match=r"stage 2 \(rank 2, host host-2\) is gone: connection lost"):
        listen(monkeypatch, [later], [first])


def test_a_cut_feed_is_told_when_nobody_knows_more(monkeypatch):
    feeding = Future()
    feeding.set_exception(PeerLost("sending to rank 1: connection closed"))
    with pytest.raises(coordinator.StageFailed, match=r"stage 1 \(rank 1, host host-1\) is gone: sending to rank 1"):
        listen(monkeypatch, [], [], feeding=feeding)
