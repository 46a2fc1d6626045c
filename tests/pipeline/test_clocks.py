"""What is made of the clocks of stages, from questions and answers."""

import itertools

import pytest

from alrpc.pipeline.clocks import SAMPLES, Clocks, estimate
from alrpc.pipeline.failures import StageLost


def test_a_clock_read_in_the_middle_of_a_round_trip_gives_its_offset():
    assert estimate(10.0, 510.25, 10.5) == (500.0, 0.25)


def test_clocks_that_cannot_be_told_apart_are_one():
    assert estimate(10.0, 10.1, 10.5) == (0.0, 0.25)


def test_of_several_answers_the_fastest_counts_and_the_next_estimate_comes_later():
    now, delays = itertools.count(0.0, 1000.0), iter([0.5, 0.5, 0.125, *[0.5] * 100])

    class Answered:
        def __init__(self, stage, function):
            self.asked = moment
            self.ended = self.asked + next(delays)

        def result(self):
            return self.asked + 40.0  # told at once; the answer takes all of the delay

    clocks, told = Clocks(1, Answered, lambda: moment), []
    for _ in range(SAMPLES + 1):
        moment = next(now)
        told += clocks.poll()
    (event,) = told
    assert event.stage == 1 and event.uncertainty == 0.0625 and event.offset == pytest.approx(40 - 0.0625)
    assert clocks.poll() == []  # nothing is asked before EVERY seconds are over


def test_a_stage_that_is_gone_is_left_to_others():
    class Lost:
        ended = 1.0

        def __init__(self, stage, function):
            pass

        def result(self):
            raise StageLost(1, "is gone")

    clocks = Clocks(1, Lost)
    assert [clocks.poll() for _ in range(3)] == [[], [], []]
