"""What is made of what stages say of themselves: who is slow, who is cut off, and when the loader hangs."""

import pytest

from alrpc.events import Status
from alrpc.pipeline.failures import silence_limit
from alrpc.pipeline.feeder import FeedStatus
from alrpc.pipeline.liveness import Watch
from alrpc.pipeline.monitor import Health
from alrpc.pipeline.placement import Placement

TIMEOUT = 10  # so that eight seconds of silence count


@pytest.fixture
def feeding():
    feeding = FeedStatus()
    feeding.sent = 5
    return feeding


@pytest.fixture
def run(feeding):
    places = [Placement(n, f"host-{n}", 1, 0, 1, 0, f"stage-{n}.log") for n in (1, 2, 3)]
    return Health(places, feeding, Watch((1, 2, 3), silence_limit(TIMEOUT)))


def at(run, awake, *statuses):
    """The statuses arrive, and all stages answer, when the coordinator has been awake for so long."""
    run.watch.awake = awake
    for stage in (1, 2, 3):
        run.watch.heard(stage)
    for each in statuses:
        run.receive(each)


def status(stage, received, sent, state="forward", in_state=0.1):
    return Status(stage, received - 1, ("train", 1, received - 1), received, sent, state, in_state, {}, 0)


def test_a_stage_that_still_waits_for_what_was_sent_long_ago_is_cut_off(run):
    for now in (0, 4, 7, 9):
        assert run.stalled_link() is None
        at(run, now, status(1, 5, 4), status(2, 3, 2, "waiting_to_receive"))
    stage, cause = run.stalled_link()
    assert stage == 2 and "waited 9 s for packet 4, which stage 1 (host host-1) has sent" in cause


def test_the_first_stage_can_be_cut_off_from_the_coordinator(run):
    at(run, 0, status(1, 4, 4, "waiting_to_receive"))
    at(run, 9, status(1, 4, 4, "waiting_to_receive"))
    stage, cause = run.stalled_link()
    assert stage == 1 and "which the coordinator has sent" in cause


def test_a_stage_that_waits_for_a_slow_one_is_not_cut_off(run):
    for now in (0, 4, 9, 20):
        at(run, now, status(1, 5, 4, in_state=now), status(2, 4, 4, "waiting_to_receive", now))
    assert run.stalled_link() is None


def test_a_stage_that_no_longer_says_that_it_waits_is_not_cut_off(run):
    """It may be frozen; then its silence is what counts."""
    at(run, 0, status(1, 3, 3, "waiting_to_receive"))
    for now in (4, 9, 20):
        at(run, now, status(2, 3, 3, "waiting_to_receive"))
        assert run.stalled_link() is None


def test_packets_that_come_late_start_the_clock_anew(run):
    at(run, 0, status(1, 5, 5), status(2, 3, 3, "waiting_to_receive"))
    for now in (6, 12):
        at(run, now, status(2, 4, 4, "waiting_to_receive"))
    assert run.stalled_link() is None
    at(run, 15, status(2, 4, 4, "waiting_to_receive"))
    assert run.stalled_link() is not None


def test_a_stage_that_waits_for_feedback_of_one_that_has_nothing_to_do_is_cut_off(run):
    for now in (0, 0, 4, 7, 9):
        assert run.stalled_link() is None
        at(run, now, status(1, 5, 4, "waiting_to_send"), status(2, 4, 3, "waiting_to_receive"))
    stage, cause = run.stalled_link()
    assert stage == 1 and cause == "has waited 9 s for feedback that stage 2 (host host-2) has sent: the network is lost"


def test_a_stage_that_waits_for_a_slow_one_s_feedback_is_not_cut_off(run):
    for now in (0, 4, 9, 20):
        at(run, now, status(1, 5, 4, "waiting_to_send", now), status(2, 4, 3, "backward", now))
    assert run.stalled_link() is None


def test_a_slow_stage_is_named_once_for_each_packet(run):
    for in_state in (1, 7, 9, 12):
        at(run, in_state, status(2, 7, 6, in_state=in_state))
        named = list(run.slow_stages())
        assert len(named) == (in_state == 9)
    at(run, 30, status(2, 8, 7, in_state=9))
    (event,) = run.slow_stages()
    assert (event.stage, event.host, event.packet) == (2, "host-2", "train packet of step 7, epoch 1")


def test_a_stage_whose_lock_is_kept_is_slow_too(run):
    """It says nothing meanwhile, so that its silence is what can be told."""
    at(run, 0, status(2, 7, 6, "waiting_to_receive"))
    run.watch.awake = 8
    assert list(run.slow_stages()) == []
    run.watch.awake = 9
    run.watch._seen[2] = 8.5  # a ping was answered
    (event,) = run.slow_stages()
    assert (event.stage, event.seconds, event.packet, event.locked) == (2, 9, "train packet of step 6, epoch 1", True)
    assert list(run.slow_stages()) == []


def test_waiting_is_never_slow(run):
    at(run, 100, status(3, 7, 6, "waiting_to_send", in_state=100))
    assert list(run.slow_stages()) == []


def test_processes_that_read_data_have_time_to_start(run, feeding):
    feeding.starting, told = 30, []

    def loader():
        for run.watch.awake in (1000, 1029, 1031):
            told.append(run.stalled_loader())
        yield "a"
        for run.watch.awake in (2000, 2009):
            told.append(run.stalled_loader())

    assert list(feeding.watch(loader())) == ["a"]
    times = [f"the loader of data has given nothing for {seconds} s, after {count}" for seconds, count in ((31, 0), (9, 1))]
    assert told == [None, None, f"{times[0]} micro-batches", None, f"{times[1]} micro-batches"]


def test_a_loader_that_gives_nothing_for_long_is_told_from_one_that_is_not_asked(run, feeding):
    told = []

    def loader():
        yield from "ab"
        for run.watch.awake in (1000, 1007, 1009):
            told.append(run.stalled_loader())

    micro_batches = feeding.watch(loader())
    assert [next(micro_batches), next(micro_batches)] == ["a", "b"]
    for run.watch.awake in (500, 1000):
        assert run.stalled_loader() is None  # a full window, not the loader
    assert next(micro_batches, None) is None
    assert told == [None, None, "the loader of data has given nothing for 9 s, after 2 micro-batches"]
