"""A link of the data plane, which carries packets from one rank to the next, up to a window of them at each end.

Credits limit the number of packets in flight: the sender acquires one for each packet, and it is released when the packet's sends have
ended. They end once the receiver has posted their receives, which it does at most a window ahead of the packets that it has taken.

Headers always travel over gloo, so that a stage learns the shapes of a packet without waiting for its GPU. On a CPU they
include all but large tensors. Other tensors travel over NCCL between GPUs, and over gloo otherwise.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import distributed

from alrpc.pipeline.failures import PeerLost
from alrpc.pipeline.wire import CPU, Header, HeaderSizes, decode, encode, length_of
from alrpc.timing import Timing
from alrpc.training.packet import Kind, Packet

MARKERS = 8  # credits for markers; if they used those of micro-batches, the markers of an epoch would fill the window
FIRST, NEXT = 0, 1  # gloo tags of first messages, whose receives are posted ahead, and of the messages that follow them


@dataclass(frozen=True)
class Link:
    """One end of a connection to a neighbouring rank."""

    rank: int
    wire: torch.device
    """The device on which tensors must be for sending and receiving."""
    group: distributed.ProcessGroup | None = None
    """The NCCL group that carries the tensors; None for gloo."""

    @property
    def tag(self) -> int:
        """The tag of tensors that have messages of their own."""
        return NEXT if self.group is None else 0


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Like `tensor.to(device)`, which releases the interpreter lock even if there is nothing to do."""
    if tensor.device == device:
        return tensor
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and tensor.is_pinned())


def make_credits(count: int) -> queue.SimpleQueue:
    """A semaphore: get() acquires, put(None) releases. Unlike threading.Semaphore it is not written in Python."""
    credits = queue.SimpleQueue()
    for _ in range(count):
        credits.put(None)
    return credits


def repeat(work: Callable[[], bool | None], fail: Callable[[Exception], None], name: str) -> None:
    """Start a thread that does the work again and again, until it returns True; an error of it ends the thread and is handed on."""

    def run() -> None:
        try:
            while not work():
                pass
        except Exception as error:
            fail(error)

    threading.Thread(target=run, name=name, daemon=True).start()


class Sender:
    """Sends packets to one rank. It does not wait until `window` micro-batches are in flight; markers have their own credits.

    Sends are posted as soon as there is a credit, and a thread waits for them in order, so that a slow link costs latency alone.
    Another thread posts them, since posting a message to gloo takes a hundred microseconds that the stage can spend on its backward
    pass. A stage on a GPU posts all its packets itself and at once, including markers, so that no packet queues behind the
    backward pass on the GPU's stream, and none overtakes another. A copy to the host raises as it is what went wrong on that GPU, which
    is no loss of the neighbour.
    """

    def __init__(self, link: Link, window: int, timing: Timing | None = None, device: torch.device = CPU):
        self._link = link
        self._at_once = device.type == "cuda"
        self._timing = timing
        self._limits = {False: window, True: MARKERS}
        self._credits = {marker: make_credits(count) for marker, count in self._limits.items()}
        self._stream = None if link.group is None else torch.cuda.Stream(link.wire)
        self._header_sizes = HeaderSizes(window)
        self._leaving: queue.SimpleQueue[Packet] = queue.SimpleQueue()
        self._posted: queue.SimpleQueue[tuple[bool, list[tuple]]] = queue.SimpleQueue()
        repeat(lambda: self._post(self._leaving.get()), self._fail, f"post-to-{link.rank}")
        repeat(self._await_next, self._fail, f"send-to-{link.rank}")

    def send(self, packet: Packet) -> None:
        """Send a packet; its tensors must not be changed afterwards.

        Raises:
            PeerLost: when the connection is lost.
        """
        self._acquire_credit(packet.is_marker)
        packet = packet.with_tensors({name: move(tensor, self._link.wire) for name, tensor in packet.tensors.items()})
        if not self._at_once:
            self._leaving.put(packet)
            return
        try:
            self._post(packet)
        except RuntimeError as error:
            raise PeerLost(f"sending to rank {self._link.rank}: {error}") from error

    def drain(self) -> None:
        """Wait until the sends of all packets have ended."""
        for marker, count in self._limits.items():
            for _ in range(count):
                self._acquire_credit(marker)
            for _ in range(count):
                self._credits[marker].put(None)

    def _acquire_credit(self, marker: bool) -> None:
        before = self._timing.enter("waiting_to_send") if self._timing else None
        error = self._credits[marker].get()
        if error is not None:
            self._credits[marker].put(error)  # for the next caller
            raise PeerLost(f"sending to rank {self._link.rank}: {error}") from error
        if before is not None:
            self._timing.enter(before)

    def _post(self, packet: Packet) -> None:
        """Post the sends of a packet; its tensors must stay alive until they have ended."""
        rank, group = self._link.rank, self._link.group
        header, tensors = encode(packet)
        limit = self._header_sizes.limit()
        self._header_sizes.note(len(header))
        messages = [header] if len(header) <= limit else [header[:limit], header[limit:]]
        works = [(distributed.isend(message, rank, tag=tag), message) for tag, message in enumerate(messages)]
        works += [(distributed.isend(tensor, rank, group, self._link.tag), tensor) for tensor in tensors]
        self._posted.put((packet.is_marker, works))

    def _await_next(self) -> None:
        marker, works = self._posted.get()
        # What NCCL calls a wait is one of the current stream, so it gets a stream that does nothing else.
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for work, _tensor in works:
                work.wait()
        if self._stream is not None:
            self._stream.synchronize()
        self._credits[marker].put(None)

    def _fail(self, error: Exception) -> None:
        for credits in self._credits.values():
            credits.put(error)  # the next call of send raises it


class Receiver:
    """Receives packets from one rank ahead of their use, at most `window` of them, until the "end" packet.

    A thread posts the receives of first messages, and another reads headers and posts the receives of large tensors, of `window`
    packets each, so that the sender waits for a receive only while it is on its way or `window` packets are here. A header whose
    tensors follow makes room for the next header at once, since it is small; otherwise each would cost two round trips.
    """

    def __init__(self, link: Link, window: int, device: torch.device, timing: Timing):
        self._link = link
        self._device = device
        self._timing = timing
        self._pinned = link.wire.type == "cpu" and device.type == "cuda"  # allows an asynchronous copy to the GPU
        self._header_sizes = HeaderSizes(window)
        self._ahead = make_credits(window)  # receives of first messages to post
        self._room = make_credits(window)  # packets whose large tensors may be received
        self._pending: queue.SimpleQueue = queue.SimpleQueue()  # first messages whose receives are posted
        self._arriving: queue.SimpleQueue = queue.SimpleQueue()
        # An error is raised by the thread that iterates over the packets.
        repeat(self._post_ahead, self._arriving.put, f"post-from-{link.rank}")
        repeat(self._receive_next, self._arriving.put, f"receive-from-{link.rank}")

    def __iter__(self) -> Iterator[Packet]:
        """The packets in order; waits for the next one to arrive.

        Raises:
            PeerLost: when the connection is lost.
        """
        while True:
            self._timing.enter("waiting_to_receive")
            arrival = self._arriving.get()
            if isinstance(arrival, Exception):
                raise PeerLost(f"receiving from rank {self._link.rank}: {arrival}") from arrival
            header, tensors, works, ready = arrival
            try:
                for work in works:
                    work.wait()
            except RuntimeError as error:
                raise PeerLost(f"receiving from rank {self._link.rank}: {error}") from error
            if header.kind is not Kind.END:
                (self._room if works else self._ahead).put(None)
            # Out-of-line tensors may have arrived only during this wait.
            self._timing.begin_packet(header.kind, header.epoch, header.step, time.perf_counter() if works else ready)
            placed = {name: move(tensor, self._device) for name, tensor in tensors.items()}
            yield Packet(header.kind, header.epoch, header.step, placed)
            if header.kind is Kind.END:
                return

    def _post_ahead(self) -> None:
        self._ahead.get()
        self._pending.put(self._post_receive(self._header_sizes.limit(), FIRST))

    def _receive_next(self) -> bool:
        rank, wire, group = self._link.rank, self._link.wire, self._link.group
        if wire.type == "cuda":
            torch.cuda.set_device(wire)  # each thread has a current device of its own
        header = self._read_header(*self._pending.get())
        if header.has_more:
            self._ahead.put(None)
            self._room.get()
        tensors, remaining = header.place(self._pinned, wire)
        works = [distributed.irecv(tensor, rank, group, self._link.tag) for tensor in remaining]
        self._arriving.put((header, tensors, works, time.perf_counter()))
        return header.kind is Kind.END

    def _post_receive(self, count: int, tag: int) -> tuple[torch.Tensor, distributed.Work]:
        message = torch.empty(count, dtype=torch.uint8)
        return message, distributed.irecv(message, self._link.rank, tag=tag)

    def _read_header(self, first: torch.Tensor, work: distributed.Work) -> Header:
        work.wait()  # with gloo a message may be shorter than the buffer that receives it
        length = length_of(first)
        self._header_sizes.note(length)
        if length <= len(first):
            return decode(first)
        rest, work = self._post_receive(length - len(first), NEXT)
        work.wait()
        return decode(torch.cat([first, rest]))
