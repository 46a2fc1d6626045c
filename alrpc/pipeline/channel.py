"""The data plane: packets from one rank to the next over torch.distributed point-to-point.

Headers always travel over gloo, so that a stage learns the shapes of a packet without waiting for its GPU; tensors travel
over NCCL between GPUs and over gloo otherwise.
"""

from __future__ import annotations

import datetime
import queue
import threading
from collections import deque
from collections.abc import Iterator

import torch
from torch import distributed

from alrpc.pipeline.packet import HEADER_BYTES, Header, Packet, decode_header, encode_header, header_rest
from alrpc.timing import Timing

PATIENCE = datetime.timedelta(days=7)  # a slow neighbour is waited for; the control plane notices a dead one


class PeerLost(Exception):
    """The connection to a neighbouring rank broke: the consequence of a failure, not its cause."""


def open_data_plane(transport: str) -> None:
    """Join the process group; returns when every rank has.

    Raises:
        PeerLost: when another rank is gone before it has joined.
    """
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if transport == "nccl" else "gloo", timeout=PATIENCE)
    except RuntimeError as error:
        raise PeerLost(f"joining the data plane: {error}") from error


def close_data_plane() -> None:
    distributed.destroy_process_group()


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Like `tensor.to(device)`, which lets go of the interpreter lock even when there is nothing to do."""
    return tensor if tensor.device == device else tensor.to(device)


class Sender:
    """Sends packets to one rank without waiting, until `window` of them have not been taken."""

    def __init__(self, rank: int, window: int, wire: torch.device, timing: Timing | None = None):
        self._rank = rank
        self._window = window
        self._wire = wire
        self._timing = timing
        self._in_flight: deque[list] = deque()

    def send(self, packet: Packet) -> None:
        """Send a packet; its tensors must not be changed afterwards.

        Raises:
            PeerLost: when the connection is gone.
        """
        self._wait_until(self._window - 1)
        tensors = {name: move(tensor, self._wire) for name, tensor in packet.tensors.items()}
        try:
            self._in_flight.append(
                [
                    (distributed.isend(message, self._rank), message)
                    for message in (*encode_header(packet), *tensors.values())
                    if message.numel()
                ]
            )
        except RuntimeError as error:
            raise PeerLost(f"sending to rank {self._rank}: {error}") from error

    def drain(self) -> None:
        """Wait until everything sent has been taken."""
        self._wait_until(0)

    def _wait_until(self, count: int) -> None:
        before = self._timing.enter("waiting_to_send") if self._timing else None
        try:
            while len(self._in_flight) > count:
                for work, _message in self._in_flight[0]:
                    work.wait()
                self._in_flight.popleft()
        except RuntimeError as error:
            raise PeerLost(f"sending to rank {self._rank}: {error}") from error
        finally:
            if before is not None:
                self._timing.enter(before)


class Receiver:
    """Receives packets from one rank ahead of their use, at most `window` of them, until one of kind "end"."""

    def __init__(self, rank: int, window: int, wire: torch.device, device: torch.device, timing: Timing):
        self._rank = rank
        self._wire = wire
        self._device = device
        self._timing = timing
        self._room = threading.Semaphore(window)
        self._arriving: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._receive, name=f"receive-from-{rank}", daemon=True).start()

    def __iter__(self) -> Iterator[Packet]:
        """The packets in order; waits for the next one to arrive.

        Raises:
            PeerLost: when the connection is gone.
        """
        while True:
            self._timing.enter("waiting_to_receive")
            arrival = self._arriving.get()
            if isinstance(arrival, Exception):
                raise PeerLost(f"receiving from rank {self._rank}: {arrival}") from arrival
            header, tensors, works = arrival
            try:
                for work in works:
                    work.wait()
            except RuntimeError as error:
                raise PeerLost(f"receiving from rank {self._rank}: {error}") from error
            self._room.release()
            self._timing.enter("computing")
            placed = {name: move(tensor, self._device) for name, tensor in tensors.items()}
            yield Packet(header.kind, header.epoch, header.step, placed)
            if header.kind == "end":
                return

    def _receive(self) -> None:
        try:
            header = None
            while header is None or header.kind != "end":
                self._room.acquire()
                header = self._receive_header()
                tensors = {
                    name: torch.empty(shape, dtype=getattr(torch, dtype), device=self._wire)
                    for name, dtype, shape in header.layout
                }
                works = [distributed.irecv(tensor, self._rank) for tensor in tensors.values() if tensor.numel()]
                self._arriving.put((header, tensors, works))
        except Exception as error:  # handed to the thread that reads the packets
            self._arriving.put(error)

    def _receive_header(self) -> Header:
        first = self._receive_bytes(HEADER_BYTES)
        rest = header_rest(first)
        return decode_header(first, self._receive_bytes(rest) if rest else None)

    def _receive_bytes(self, count: int) -> torch.Tensor:
        message = torch.empty(count, dtype=torch.uint8)
        distributed.irecv(message, self._rank).wait()
        return message
