"""A packet as bytes: header and small tensors in one piece, larger tensors as messages of their own."""

from __future__ import annotations

import functools
import json
import math
import struct
from collections import deque
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from alrpc.objectives.base import ALIGNMENT
from alrpc.training.packet import Kind, Packet

INLINE_BYTES = 512 << 10  # a tensor on a CPU of no more travels with the header: a message costs more than the copying
INLINE_TOTAL = 4 << 20  # nor do all of them together have more
FIRST_BYTES = 64 << 10  # that every first message may have; see HeaderSizes
HEADER_STRUCT = struct.Struct("<IIIQ")  # bytes of header and inline tensors together, of the layout's JSON; epoch, step
CPU = torch.device("cpu")
LAYOUTS = 1024  # that are remembered: after sleeping, a process takes some 100 µs to write or read one


TensorMeta = tuple[str, torch.dtype, list[int], int | None]
"""Name, type and shape of a tensor, and where it is among the inline ones; None for a message of its own."""


class HeaderSizes:
    """How long the first message of each packet may be: as long as the longest packet so far.

    What is longer goes on in a second message. Receives of first messages are posted before their packets are known, `ahead`
    of them. Both sides derive the size from the packets before those, so it is never sent.
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

    kind: Kind
    epoch: int
    step: int
    layout: tuple[TensorMeta, ...]
    inline: numpy.ndarray
    """Bytes."""

    def place(self, pinned: bool, device: torch.device) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The packet's tensors, and those among them that are yet to be received, on this device.

        Inline tensors stay where they arrived, unless they are to be pinned.
        """
        tensors, remaining = {}, []
        for name, dtype, shape, start in self.layout:
            if start is None or pinned or 0 in shape:
                where = CPU if start is not None else device
                tensor = torch.empty(shape, dtype=dtype, device=where, pin_memory=pinned and where.type == "cpu")
                if start is None:
                    remaining.append(tensor)
                elif tensor.numel():
                    memory(tensor)[:] = self.inline[start : start + tensor.nbytes]
            else:  # not as views of one tensor, which autograd would take for one another
                tensor = torch.frombuffer(self.inline, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
            tensors[name] = tensor
        return tensors, remaining


def encode(packet: Packet) -> tuple[Tensor, list[Tensor]]:
    """Header and inline tensors in one piece, (bytes,), and the tensors that follow as messages of their own."""
    tensors = packet.tensors.items()
    key = tuple((name, tensor.dtype, tuple(tensor.shape), tensor.nbytes, tensor.is_cpu) for name, tensor in tensors)
    text, begin, starts, total = _lay_out(packet.kind.value, key)
    whole = torch.empty(total, dtype=torch.uint8)
    data = whole.numpy()
    HEADER_STRUCT.pack_into(data, 0, total, len(text), packet.epoch, packet.step)
    data[HEADER_STRUCT.size : HEADER_STRUCT.size + len(text)] = numpy.frombuffer(text, numpy.uint8)
    out_of_line = []
    for tensor, start in zip(packet.tensors.values(), starts, strict=True):
        if start is None:
            out_of_line.append(tensor)
        elif tensor.numel():
            data[begin + start : begin + start + tensor.nbytes] = memory(tensor)
    return whole, out_of_line


@functools.lru_cache(LAYOUTS)
def _lay_out(kind: str, key: tuple) -> tuple[bytes, int, tuple[int | None, ...], int]:
    """The layout's JSON, where inline tensors begin, where among them each tensor is (None: out of line), and the length of all."""
    layout, used = [], 0
    for name, dtype, shape, size, on_cpu in key:
        start = None
        if size == 0 or (on_cpu and size <= min(INLINE_BYTES, INLINE_TOTAL - used)):
            start = used
            used += _aligned(size)
        layout.append((name, str(dtype).removeprefix("torch."), shape, start))
    text = json.dumps([kind, layout]).encode()
    begin = _aligned(HEADER_STRUCT.size + len(text))
    return text, begin, tuple(start for *_, start in layout), begin + used


def length_of(first: Tensor) -> int:
    """Bytes of header and inline tensors, told by the first message."""
    return HEADER_STRUCT.unpack_from(first.numpy())[0]


def decode(whole: Tensor) -> Header:
    """The header and the inline tensors of what `encode` made one piece of; it may be longer."""
    whole = whole.numpy()
    _, length, epoch, step = HEADER_STRUCT.unpack_from(whole)
    kind, layout = _read(whole[HEADER_STRUCT.size : HEADER_STRUCT.size + length].tobytes())
    return Header(kind, epoch, step, layout, whole[_aligned(HEADER_STRUCT.size + length) :])


@functools.lru_cache(LAYOUTS)
def _read(text: bytes) -> tuple[Kind, tuple[TensorMeta, ...]]:
    kind, layout = json.loads(text)
    return Kind(kind), tuple((name, getattr(torch, dtype), shape, start) for name, dtype, shape, start in layout)


def memory(tensor: Tensor) -> numpy.ndarray:
    """A contiguous CPU tensor's memory, (bytes,), uint8."""
    if tensor.dtype is torch.bfloat16:  # unknown to numpy
        tensor = tensor.view(torch.uint16)
    return tensor.numpy().reshape(-1).view(numpy.uint8)


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
