"""Packets between two real processes over gloo."""

import contextlib
import functools
import multiprocessing
import os
import queue
import socket
import time

import pytest
import torch
from conftest import LIMIT
from torch import distributed

from alrpc.pipeline.failures import PeerLost, hard_exit
from alrpc.pipeline.groups import close_data_plane, links_between, open_data_plane
from alrpc.pipeline.link import Link, Receiver, Sender
from alrpc.timing import Timing
from alrpc.training.packet import Kind, Packet

CPU = torch.device("cpu")
WINDOW = 2


def packets() -> list[Packet]:
    """Every packet of another shape: more tensors, other types, no elements, none at all, a header of two messages."""
    tensors = [
        {"x": torch.arange(12.0).reshape(3, 4), "target": torch.ones(3, 2)},
        {"x": torch.arange(8).reshape(2, 4)},
        {},
        {"x": torch.zeros(0, 4), "mask": torch.tensor([True, False]), "scalar": torch.tensor(2.5, dtype=torch.bfloat16)},
        {f"a-tensor-with-a-long-name-{index}": torch.full((index,), index) for index in range(60)},
        {"x": torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))},
    ]
    return [Packet(Kind.TRAIN, 1, step, each) for step, each in enumerate(tensors)] + [Packet(Kind.END, 1, len(tensors))]


def prepare(rank: int, port: int, ranks: int) -> None:
    own = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
    os.environ.update(own, MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")


def join(rank: int, port: int) -> None:
    prepare(rank, port, 2)
    open_data_plane(rank, [], "gloo", CPU)


def send_all(port: int, result) -> None:
    join(0, port)
    sender = Sender(Link(1, CPU), WINDOW)
    for packet in packets():
        sender.send(packet)
    sender.drain()
    close_data_plane()


def receive_all(port: int, result) -> None:
    join(1, port)
    for got, sent in zip(Receiver(Link(0, CPU), WINDOW, CPU, Timing()), packets(), strict=True):
        same = got.tensors.keys() == sent.tensors.keys() and all(
            torch.equal(got.tensors[name], tensor) and got.tensors[name].dtype == tensor.dtype
            for name, tensor in sent.tensors.items()
        )
        result.put((got.kind, got.step, same))
    close_data_plane()


def send_without_end(port: int, result) -> None:
    join(0, port)
    sender = Sender(Link(1, CPU), WINDOW)
    for step in range(100):
        sender.send(Packet(Kind.TRAIN, 1, step, {"x": torch.zeros(10)}))
        result.put(step)


def send_markers_between(port: int, result) -> None:
    join(0, port)
    sender = Sender(Link(1, CPU), WINDOW)
    for step, kind in enumerate(["train", "epoch", "evaluate", "evaluated", *["train"] * 20]):
        sender.send(Packet(Kind(kind), 1, step, {"x": torch.zeros(10)} if kind == "train" else {}))
        result.put(kind)


def receive_one_and_wait(port: int, result) -> None:
    join(1, port)
    next(iter(Receiver(Link(0, CPU), WINDOW, CPU, Timing())))
    time.sleep(60)


def receive_until_lost(port: int, result) -> None:
    join(1, port)
    try:
        for _ in Receiver(Link(0, CPU), WINDOW, CPU, Timing()):
            pass
    except PeerLost as error:
        result.put(str(error))


def send_one_and_die(port: int, result) -> None:
    join(0, port)
    Sender(Link(1, CPU), WINDOW).send(Packet(Kind.TRAIN, 1, 0, {"x": torch.zeros(10)}))
    time.sleep(1)
    os._exit(9)


LARGE = {"x": torch.zeros(1 << 19)}  # 2 MiB, in a message of its own


def send_a_window_of_large_packets(port: int, result) -> None:
    """Tell of every send that is posted, then of every packet whose sends have ended."""
    join(0, port)
    isend, posted = distributed.isend, queue.SimpleQueue()
    distributed.isend = lambda *arguments, **named: (isend(*arguments, **named), posted.put(None))[0]
    sender = Sender(Link(1, CPU), WINDOW)
    for step in range(WINDOW):
        sender.send(Packet(Kind.TRAIN, 1, step, LARGE))
    for _ in range(2 * WINDOW):  # header and tensor
        posted.get()
        result.put("posted")
    sender.drain()
    result.put("sent")
    time.sleep(60)


def receive_when_told(told, port: int, result) -> None:
    join(1, port)
    told.wait()
    Receiver(Link(0, CPU), WINDOW, CPU, Timing())  # which nobody asks for a packet
    time.sleep(60)


def open_groups(rank: int, port: int, result) -> None:
    """Open the groups of GPUs' links between three stages, of gloo in place of NCCL."""
    prepare(rank, port, 4)
    new_group = distributed.new_group

    def of_gloo(ranks, backend, timeout, device_id):
        assert backend == "nccl" and (device_id is None) == (rank not in ranks)
        return new_group(ranks, backend="gloo", timeout=timeout)

    distributed.new_group = of_gloo
    groups = open_data_plane(rank, links_between(3, feedback=True), "nccl", CPU)
    for (origin, goal), group in groups.items():  # each link has a group of its own, so that no message goes astray
        message = torch.tensor([10.0 * origin + goal]) if rank == origin else torch.zeros(1)
        (distributed.send if rank == origin else distributed.recv)(message, goal if rank == origin else origin, group)
        result.put(message.item())
    result.put(None)
    close_data_plane()


def run_and_leave(function, port: int, result) -> None:
    """Run a function, then exit as a stage does: at once, since a thread of a link may hold objects of torch, which must not be
    ended while the interpreter is taken down."""
    function(port, result)
    result.close()
    result.join_thread()
    hard_exit(0)


@pytest.fixture
def pair():
    """Starts functions as rank 0, 1 and so on; gives the processes and what each put into its queue."""
    context = multiprocessing.get_context("spawn")
    processes = []

    def start(*functions):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        results = []
        for function in functions:
            results.append(context.Queue())
            processes.append(context.Process(target=run_and_leave, args=(function, port, results[-1]), daemon=True))
            processes[-1].start()
        return processes, results

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_packets_of_any_shape_arrive_in_order(pair):
    processes, (_, received) = pair(send_all, receive_all)
    expected = [(packet.kind, packet.step, True) for packet in packets()]
    assert [received.get(timeout=LIMIT) for _ in expected] == expected
    for process in processes:
        process.join(20)
        assert process.exitcode == 0


def test_three_stages_on_gpus_open_a_group_for_each_link(pair):
    _, results = pair(*(functools.partial(open_groups, rank) for rank in range(4)))
    told = [list(iter(functools.partial(each.get, timeout=LIMIT), None)) for each in results]
    assert told == [[], [12, 21], [12, 21, 23, 32], [23, 32]]


def until_it_waits(sent) -> list:
    """What a process tells of its sending until it tells nothing for three seconds."""
    told = [sent.get(timeout=LIMIT)]
    with contextlib.suppress(queue.Empty):
        while True:
            told.append(sent.get(timeout=3))
    return told


def test_a_sender_runs_ahead_no_further_than_the_window(pair):
    _, (sent, _) = pair(send_without_end, receive_one_and_wait)
    steps = until_it_waits(sent)
    # One in use, a window received ahead, one whose header is on its way, a window of unfinished sends.
    assert WINDOW < len(steps) <= 2 * WINDOW + 2


def test_both_ends_work_a_window_of_large_packets_ahead(pair):
    """A slow link then costs latency alone, though each large tensor waits for a receive to be posted."""
    told = multiprocessing.get_context("spawn").Event()
    _, (sent, _) = pair(send_a_window_of_large_packets, functools.partial(receive_when_told, told))
    assert [sent.get(timeout=LIMIT) for _ in range(2 * WINDOW)] == ["posted"] * 2 * WINDOW  # before any of them is received
    told.set()
    assert sent.get(timeout=LIMIT) == "sent"  # before any of them is taken


def test_markers_leave_the_window_to_the_micro_batches(pair):
    _, (sent, _) = pair(send_markers_between, receive_one_and_wait)
    kinds = until_it_waits(sent)
    # A stage is handed the last step of an epoch and all that follows while it is still at work on the step before.
    assert kinds[:4] == ["train", "epoch", "evaluate", "evaluated"] and kinds[4:].count("train") >= WINDOW


def test_a_lost_neighbour_is_told_from_a_failure_of_ones_own(pair):
    _, (_, received) = pair(send_one_and_die, receive_until_lost)
    assert received.get(timeout=LIMIT).startswith("receiving from rank 0")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_goes_wrong_in_ones_own_memory_is_no_lost_neighbour(device):
    """As where a kernel of a GPU has failed, which the copy of its results to the host is the first to tell."""
    sender = Sender(Link(1, CPU), WINDOW, device=torch.device(device))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        sender.send(Packet(Kind.TRAIN, 1, 0, {"x": torch.empty(2, device="meta")}))
