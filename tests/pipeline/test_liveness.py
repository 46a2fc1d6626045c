"""Who lives, told by calls, answers and pings, with a clock that is set by hand."""

import pytest

from alrpc.pipeline.failures import StageLost
from alrpc.pipeline.liveness import Watch

LIMIT = 8


class Ping:
    def __init__(self, answer: Exception | None):
        self.ended, self.answer = 0.0, answer

    def result(self):
        if self.answer is not None:
            raise self.answer


class Unanswered(Ping):
    def __init__(self):
        self.ended = None


class Scene:
    """A watch over rank 3, whose pings meet what `answer` makes."""

    def __init__(self, answer):
        self.time, self.pinged, self.answer = 0.0, 0, answer

        def ping(rank):
            assert rank == 3
            self.pinged += 1
            return self.answer()

        self.watch = Watch([3], LIMIT, ping, lambda: self.time)

    def pass_by(self, seconds, every=1.0):
        end = self.time + seconds
        while self.time < end:
            self.time += every
            self.watch.look()


def test_one_that_answers_is_not_pinged():
    scene = Scene(Unanswered)
    for _ in range(100):
        scene.pass_by(0.5, 0.1)
        scene.watch.heard(3)
    assert scene.pinged == 0 and not scene.watch.is_lost(3) and not scene.watch.is_stuck(3)


@pytest.mark.parametrize("answer", [Unanswered, lambda: Ping(StageLost(3, "is gone"))], ids=["silent", "gone"])
def test_one_that_answers_neither_calls_nor_pings_is_lost(answer):
    scene = Scene(answer)
    scene.pass_by(LIMIT)
    assert not scene.watch.is_lost(3)
    scene.pass_by(1)
    assert scene.watch.is_lost(3) and not scene.watch.is_stuck(3)


def test_one_that_answers_pings_alone_is_stuck_until_it_answers_again():
    scene = Scene(lambda: Ping(None))
    scene.pass_by(1000, 0.5)
    assert scene.watch.is_stuck(3) and not scene.watch.is_lost(3)
    assert scene.watch.silence(3) == 1000 and scene.pinged <= 1000  # not more than one a second
    scene.watch.heard(3)
    scene.watch.look()
    assert not scene.watch.is_stuck(3)


def test_one_that_stops_answering_even_pings_is_never_taken_for_stuck():
    scene = Scene(lambda: Ping(None))
    scene.pass_by(1.5, 0.1)  # one ping is answered
    scene.answer = Unanswered
    while not scene.watch.is_lost(3):
        scene.pass_by(0.1, 0.1)
        assert not scene.watch.is_stuck(3)


def test_processes_of_a_lost_host_are_lost_together():
    """Their last signs of life differ by the time between two polls."""
    time = iter([0.0, 1.0, 1.5, LIMIT + 0.5, LIMIT + 1.25])
    watch = Watch([1, 2, 3], LIMIT, lambda rank: Unanswered(), lambda: next(time))
    for rank in (3, 2):
        watch.look()
        watch.heard(rank)
    watch.heard(1)
    watch._looked = LIMIT - 0.5  # awake all the while
    watch.awake = LIMIT - 0.5
    watch.heard(1)
    watch.look()
    assert not any(map(watch.is_lost, (1, 2, 3)))
    watch.look()
    assert [rank for rank in (1, 2, 3) if watch.is_lost(rank)] == [2, 3]


def test_time_in_which_the_one_who_listens_was_suspended_does_not_count():
    scene = Scene(Unanswered)
    scene.pass_by(LIMIT / 2)
    scene.pass_by(1000, 1000)
    assert not scene.watch.is_lost(3)
    scene.pass_by(LIMIT / 2)
    assert scene.watch.is_lost(3)
