"""The encoding of packets: header and small tensors in one message, each larger tensor in a message of its own."""

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

INLINE_BYTES = 1 << 20  # largest inline tensor on a CPU; up to this size a copy is cheaper than a message
INLINE_TOTAL = 4 << 20  # largest total of a packet's inline tensors
FIRST_BYTES = 64 << 10  # initial size limit of first messages; see HeaderSizes
HEADER_STRUCT = struct.Struct("<IIIQ")  # bytes of header and inline tensors, bytes of the layout's JSON, epoch, step
CPU = torch.device("cpu")
LAYOUTS = 1024  # cached layouts, since encoding or decoding one takes about 100 µs in a process that has just slept


TensorMeta = tuple[str, torch.dtype, list[int], int | None]
"""Name, type and shape of a tensor, and its offset among the inline tensors; None for a message of its own."""


class HeaderSizes:
    """The size limit of each packet's first message, which is the size of the longest header so far.

    The rest of a longer header follows in a second message. The receiver posts receives of first messages `ahead` packets in
    advance. Both sides derive the limit from the packets before those, so it is never sent.
    """

    def __init__(self, ahead: int):
        self._limits = deque([FIRST_BYTES] * ahead)
        self._longest = FIRST_BYTES

    def limit(self) -> int:
        """The size limit in bytes of the next first message; each call moves on to the following one."""
        return self._limits.popleft()

    def note(self, length: int) -> None:
        """Record the length of the next packet's header, including inline tensors."""
        self._longest = max(self._longest, length)
        self._limits.append(self._longest)


@dataclass(frozen=True)
class Header:
    """A packet without the tensors that have messages of their own."""

    kind: Kind
    epoch: int
    step: int
    layout: tuple[TensorMeta, ...]
    inline: numpy.ndarray
    """The bytes of the inline tensors."""

    @property
    def has_more(self) -> bool:
        """Whether tensors follow in messages of their own."""
        return any(start is None for *_, start in self.layout)

    def place(self, pinned: bool, device: torch.device) -> tuple[dict[str, Tensor], list[Tensor]]:
        """All tensors of the packet, and those of them that are still to be received, which are allocated on `device`.

        Inline tensors use the memory of the message, unless they must be pinned.
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
            else:  # not views of one tensor, which autograd would treat as related
                tensor = torch.frombuffer(self.inline, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
            tensors[name] = tensor
        return tensors, remaining


def encode(packet: Packet) -> tuple[Tensor, list[Tensor]]:
    """Encode header and inline tensors as one tensor, (bytes,); also returns the tensors that follow in messages of their own."""
    tensors = packet.tensors.items()
    key = tuple((name, tensor.dtype, tuple(tensor.shape), tensor.nbytes, tensor.is_cpu) for name, tensor in tensors)
    text, begin, starts, total = _lay_out(packet.kind.value, key)
    header = torch.empty(total, dtype=torch.uint8)
    data = header.numpy()
    HEADER_STRUCT.pack_into(data, 0, total, len(text), packet.epoch, packet.step)
    data[HEADER_STRUCT.size : HEADER_STRUCT.size + len(text)] = numpy.frombuffer(text, numpy.uint8)
    out_of_line = []
    for tensor, start in zip(packet.tensors.values(), starts, strict=True):
        if start is None:
            out_of_line.append(tensor)
        elif tensor.numel():
            data[begin + start : begin + start + tensor.nbytes] = memory(tensor)
    return header, out_of_line


@functools.lru_cache(LAYOUTS)
def _lay_out(kind: str, key: tuple) -> tuple[bytes, int, tuple[int | None, ...], int]:
    """The layout's JSON, the begin of inline tensors, each tensor's offset among them (None: out of line), and the total length."""
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
    """Bytes of header and inline tensors, read from the first message."""
    return HEADER_STRUCT.unpack_from(first.numpy())[0]


def decode(header: Tensor) -> Header:
    """Decode a header with its inline tensors, as `encode` made it; the tensor may be longer than that."""
    data = header.numpy()
    _, length, epoch, step = HEADER_STRUCT.unpack_from(data)
    kind, layout = _read(data[HEADER_STRUCT.size : HEADER_STRUCT.size + length].tobytes())
    return Header(kind, epoch, step, layout, data[_aligned(HEADER_STRUCT.size + length) :])


@functools.lru_cache(LAYOUTS)
def _read(text: bytes) -> tuple[Kind, tuple[TensorMeta, ...]]:
    kind, layout = json.loads(text)
    return Kind(kind), tuple((name, getattr(torch, dtype), shape, start) for name, dtype, shape, start in layout)


def memory(tensor: Tensor) -> numpy.ndarray:
    """The memory of a contiguous CPU tensor as an array of bytes, (bytes,), uint8."""
    if tensor.dtype is torch.bfloat16:  # numpy does not support it
        tensor = tensor.view(torch.uint16)
    return tensor.numpy().reshape(-1).view(numpy.uint8)


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
