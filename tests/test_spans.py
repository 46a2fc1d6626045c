"""Which packets' moments a process keeps, and what of them is told."""

import itertools

from alrpc.spans import BLOCK, SpanRecorder
from alrpc.timing import Timing


def work_through(recorder: SpanRecorder, packets: int) -> list[dict]:
    """Each packet is waited for, worked on forward and backward, and takes 1 s in all; gives the blocks told of meanwhile."""
    told = []
    for number in range(packets):
        recorder.enter("waiting_to_receive", 0, number)
        recorder.begin_packet("train", 1, number, number + 0.125)
        recorder.enter("forward", 1, number + 0.25)
        recorder.enter("backward", 1, number + 0.5)
        told += recorder.take()
    return told


def test_what_is_kept_of_a_run_of_any_length_is_little():
    recorder = SpanRecorder()
    told = work_through(recorder, 40 * BLOCK)
    last = recorder.take(last=True)
    assert [block["block"] for block in told] == [0, 1, 2, 4, 8, 16, 32]
    assert [block["block"] for block in last] == [38, 39]
    assert all(len(block["packets"]) == BLOCK for block in told + last)
    assert recorder.take(last=True) == []


def test_a_block_has_every_moment_of_its_packets_and_the_waits_for_them():
    recorder = SpanRecorder()
    told = work_through(recorder, 2 * BLOCK + 1)
    block = told[1]
    assert block["origin"] == BLOCK and block["end"] == BLOCK * 1_000_000
    entries = [("waiting_to_receive", 0, 0), ("forward", 1, 250_000), ("backward", 1, 500_000)]
    assert block["entries"][:4] == [*entries, ("waiting_to_receive", 0, 1_000_000)]
    assert len(block["entries"]) == 3 * BLOCK
    assert block["packets"][:2] == [("train", 1, BLOCK, 125_000, 1), ("train", 1, BLOCK + 1, 1_125_000, 4)]


def test_a_short_run_leaves_all_that_there_was():
    recorder = SpanRecorder()
    assert work_through(recorder, 3) == []
    (block,) = recorder.take(last=True)
    assert [step for _, _, step, _, _ in block["packets"]] == [0, 1, 2]


def test_a_process_without_packets_keeps_nothing():
    timing = Timing()
    for state in itertools.islice(itertools.cycle(["forward", "waiting_to_send"]), 1000):
        timing.enter(state)
    assert timing.spans.take(last=True) == [] and len(timing.spans._entries) == 1
