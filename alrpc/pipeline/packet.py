"""What travels between processes: a micro-batch's named tensors, or a marker, in one stream.

kind      tensors                                      what a stage does
train     activations, target (or label, to stage 1)   trains its components, hands the rest on
epoch     none                                         reports losses and timings of the epoch
evaluate  decoder parameters, as they are collected    adds its own, stops learning
test      activations, label, exit.l so far            runs its components, adds their bridges' outputs
evaluated none                                         learns again; the last stage reports the exits
checkpoint none                                        copies its state, which a thread writes; reports when it is on the disk
end       none                                         waits for that thread, reports, stops
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections import deque
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from alrpc.component import ALIGNMENT

INLINE_BYTES = 512 << 10  # a tensor on a CPU of no more travels with the header: a message costs more than the copying
INLINE_TOTAL = 4 << 20  # nor do all of them together have more
MICRO_BATCHES = ("train", "test")  # kinds; every other packet is a marker
FIRST_BYTES = 64 << 10  # that every first message may have; see FirstMessages
NUMBERS = struct.Struct("<IIIQ")  # bytes of header and inline tensors together, of the layout's JSON; epoch, step
CPU = torch.device("cpu")
LAYOUTS = 1024  # that are remembered: after sleeping, a process takes some 100 µs to write or read one


@dataclass(frozen=True)
class Packet:
    kind: str
    epoch: int
    """From 1."""
    step: int
    """The micro-batch's number in the run, from 0; for a marker, how many came before it."""
    tensors: dict[str, Tensor] = field(default_factory=dict)


def describe_packet(packet: tuple[str, int, int] | None) -> str:
    """For a message: a packet's kind, epoch and step."""
    return f"{packet[0]} packet of step {packet[2]}, epoch {packet[1]}" if packet else "none"


Place = tuple[str, torch.dtype, list[int], int | None]
"""Name, type and shape of a tensor, and where it is among the inline ones; None for a message of its own."""


class FirstMessages:
    """How long the first message of each packet may be: as long as the longest packet so far.

    What is longer goes on in a second message. A receiver asks for first messages before it knows their packets, `ahead` of
    them; sender and receiver reckon alike, from the packets before those.
    """

    def __init__(self, ahead: int):
        self._limits = deque([FIRST_BYTES] * ahead)
        self._longest = FIRST_BYTES

    def limit(self) -> int:
        """Bytes that the next first message may have; the next call is about the one after it."""
        return self._limits.popleft()

    def note(self, length: int) -> None:
        """The next packet has this length, its inline tensors included."""
        self._longest = max(self._longest, length)
        self._limits.append(self._longest)


@dataclass(frozen=True)
class Header:
    """All of a packet but the tensors that are messages of their own."""

    kind: str
    epoch: int
    step: int
    layout: tuple[Place, ...]
    inline: numpy.ndarray
    """Bytes."""

    def place(self, pinned: bool, device: torch.device) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The packet's tensors, and those among them that are yet to be received, on this device.

        Inline tensors stay where they arrived, unless they are to be pinned.
        """
        tensors, coming = {}, []
        for name, dtype, shape, start in self.layout:
            if start is None or pinned or 0 in shape:
                where = CPU if start is not None else device
                tensor = torch.empty(shape, dtype=dtype, device=where, pin_memory=pinned and where.type == "cpu")
                if start is None:
                    coming.append(tensor)
                elif tensor.numel():
                    memory(tensor)[:] = self.inline[start : start + tensor.nbytes]
            else:  # not as views of one tensor, which autograd would take for one another
                tensor = torch.frombuffer(self.inline, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
            tensors[name] = tensor
        return tensors, coming


def encode(packet: Packet) -> tuple[Tensor, list[Tensor]]:
    """Header and inline tensors in one piece, (bytes,), and the tensors that follow as messages of their own."""
    tensors = packet.tensors.items()
    key = tuple((name, tensor.dtype, tuple(tensor.shape), tensor.nbytes, tensor.is_cpu) for name, tensor in tensors)
    text, begin, starts, total = _lay_out(packet.kind, key)
    whole = torch.empty(total, dtype=torch.uint8)
    data = whole.numpy()
    NUMBERS.pack_into(data, 0, total, len(text), packet.epoch, packet.step)
    data[NUMBERS.size : NUMBERS.size + len(text)] = numpy.frombuffer(text, numpy.uint8)
    apart = []
    for tensor, start in zip(packet.tensors.values(), starts, strict=True):
        if start is None:
            apart.append(tensor)
        elif tensor.numel():
            data[begin + start : begin + start + tensor.nbytes] = memory(tensor)
    return whole, apart


@functools.lru_cache(LAYOUTS)
def _lay_out(kind: str, key: tuple) -> tuple[bytes, int, tuple[int | None, ...], int]:
    """The layout's JSON, where inline tensors begin, where among them each tensor is (None: apart), and the length of all."""
    layout, used = [], 0
    for name, dtype, shape, size, on_cpu in key:
        start = None
        if size == 0 or (on_cpu and size <= min(INLINE_BYTES, INLINE_TOTAL - used)):
            start = used
            used += _aligned(size)
        layout.append((name, str(dtype).removeprefix("torch."), shape, start))
    text = json.dumps([kind, layout]).encode()
    begin = _aligned(NUMBERS.size + len(text))
    return text, begin, tuple(start for *_, start in layout), begin + used


def length_of(first: Tensor) -> int:
    """Bytes of header and inline tensors, told by the first message."""
    return NUMBERS.unpack_from(first.numpy())[0]


def decode(whole: Tensor) -> Header:
    """The header and the inline tensors of what `encode` made one piece of; it may be longer."""
    whole = whole.numpy()
    _, length, epoch, step = NUMBERS.unpack_from(whole)
    kind, layout = _read(whole[NUMBERS.size : NUMBERS.size + length].tobytes())
    return Header(kind, epoch, step, layout, whole[_aligned(NUMBERS.size + length) :])


@functools.lru_cache(LAYOUTS)
def _read(text: bytes) -> tuple[str, tuple[Place, ...]]:
    kind, layout = json.loads(text)
    return kind, tuple((name, getattr(torch, dtype), shape, start) for name, dtype, shape, start in layout)


def memory(tensor: Tensor) -> numpy.ndarray:
    """A contiguous CPU tensor's memory, (bytes,), uint8."""
    if tensor.dtype is torch.bfloat16:  # unknown to numpy
        tensor = tensor.view(torch.uint16)
    return tensor.numpy().reshape(-1).view(numpy.uint8)


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
