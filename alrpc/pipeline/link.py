"""A link of the data plane, which carries packets from one rank to the next, up to a window of them at each end.

Credits limit the number of packets in flight: the sender acquires one for each packet, and it is released when the receiver
has taken the packet.

Headers always travel over gloo, so that a stage learns the shapes of a packet without waiting for its GPU. On a CPU they
include all but large tensors. Other tensors travel over NCCL between GPUs, and over gloo otherwise.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

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


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Like `tensor.to(device)`, which releases the interpreter lock even if there is nothing to do."""
    return (
        tensor
        if tensor.device == device
        else tensor.to(device, non_blocking=tensor.device.type == "cpu" and tensor.is_pinned())
    )


def make_credits(count: int) -> queue.SimpleQueue:
    """A semaphore: get() acquires, put(None) releases. Unlike threading.Semaphore it is not written in Python."""
    credits = queue.SimpleQueue()
    for _ in range(count):
        credits.put(None)
    return credits


class Sender:
    """Sends packets to one rank. It does not wait until `window` micro-batches are in flight; markers have their own credits.

    A thread posts the sends, since posting a message to gloo takes a hundred microseconds that the stage can spend on its backward
    pass. A stage on a GPU posts all its packets itself and at once, including markers, so that no packet queues behind the
    backward pass on the GPU's stream, and none overtakes another.
    """

    def __init__(self, link: Link, window: int, timing: Timing | None = None, device: torch.device = CPU):
        self._link = link
        self._at_once = device.type == "cuda"
        self._timing = timing
        self._limits = {False: window, True: MARKERS}
        self._credits = {marker: make_credits(count) for marker, count in self._limits.items()}
        self._header_sizes = HeaderSizes(window)
        self._leaving: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._send, name=f"send-to-{link.rank}", daemon=True).start()

    def send(self, packet: Packet) -> None:
        """Send a packet; its tensors must not be changed afterwards.

        Raises:
            PeerLost: when the connection is lost.
        """
        marker = packet.is_marker
        self._acquire_credit(marker)
        try:
            self._leaving.put((marker, self._post_sends(packet) if self._at_once else packet))
        except RuntimeError as error:
            raise PeerLost(f"sending to rank {self._link.rank}: {error}") from error

    def drain(self) -> None:
        """Wait until the receiver has taken all packets."""
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

    def _post_sends(self, packet: Packet) -> list[tuple]:
        """Post the sends of a packet; returns the works to wait for, with the tensors that must stay alive until then."""
        rank, wire, group = self._link.rank, self._link.wire, self._link.group
        header, tensors = encode(replace(packet, tensors={name: move(t, wire) for name, t in packet.tensors.items()}))
        limit = self._header_sizes.limit()
        self._header_sizes.note(len(header))
        messages = [header] if len(header) <= limit else [header[:limit], header[limit:]]
        works = [(distributed.isend(message, rank, tag=tag), message) for tag, message in enumerate(messages)]
        next_tag = NEXT if group is None else 0
        return works + [(distributed.isend(tensor, rank, group, next_tag), tensor) for tensor in tensors]

    def _send(self) -> None:
        try:
            while True:
                marker, leaving = self._leaving.get()
                for work, _tensor in self._post_sends(leaving) if isinstance(leaving, Packet) else leaving:
                    work.wait()
                self._credits[marker].put(None)
        except Exception as error:  # the next call of send raises it
            for credits in self._credits.values():
                credits.put(error)


class Receiver:
    """Receives packets from one rank ahead of their use, at most `window` of them, until the "end" packet."""

    def __init__(self, link: Link, window: int, device: torch.device, timing: Timing):
        self._link = link
        self._device = device
        self._timing = timing
        self._window = window
        self._taken: queue.SimpleQueue = queue.SimpleQueue()  # one None for each packet that was taken
        self._arriving: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._receive, name=f"receive-from-{link.rank}", daemon=True).start()

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
            self._taken.put(None)
            # Out-of-line tensors may have arrived only during this wait.
            self._timing.begin_packet(header.kind, header.epoch, header.step, time.perf_counter() if works else ready)
            placed = {name: move(tensor, self._device) for name, tensor in tensors.items()}
            yield Packet(header.kind, header.epoch, header.step, placed)
            if header.kind is Kind.END:
                return

    def _receive(self) -> None:
        rank, wire, group = self._link.rank, self._link.wire, self._link.group
        try:
            if wire.type == "cuda":
                torch.cuda.set_device(wire)  # each thread has a current device of its own
            pinned = wire.type == "cpu" and self._device.type == "cuda"  # allows an asynchronous copy to the GPU
            header_sizes = HeaderSizes(self._window)
            pending = deque(self._post_receive(header_sizes.limit(), FIRST) for _ in range(self._window))
            while True:
                header = self._read_header(*pending.popleft(), header_sizes)
                tensors, remaining = header.place(pinned, wire)
                works = [distributed.irecv(tensor, rank, group, NEXT if group is None else 0) for tensor in remaining]
                self._arriving.put((header, tensors, works, time.perf_counter()))
                if header.kind is Kind.END:
                    return
                self._taken.get()
                pending.append(self._post_receive(header_sizes.limit(), FIRST))
        except Exception as error:  # raised by the thread that iterates over the packets
            self._arriving.put(error)

    def _post_receive(self, count: int, tag: int) -> tuple[torch.Tensor, distributed.Work]:
        message = torch.empty(count, dtype=torch.uint8)
        return message, distributed.irecv(message, self._link.rank, tag=tag)

    def _read_header(self, first: torch.Tensor, work: distributed.Work, header_sizes: HeaderSizes) -> Header:
        work.wait()  # with gloo a message may be shorter than the buffer that receives it
        length = length_of(first)
        header_sizes.note(length)
        if length <= len(first):
            return decode(first)
        rest, work = self._post_receive(length - len(first), NEXT)
        work.wait()
        return decode(torch.cat([first, rest]))
