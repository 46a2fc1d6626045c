"""What travels between processes: a micro-batch's named tensors, or a marker, in one stream.

kind      tensors                                      what a stage does
train     activations, target (or label, to stage 1)   trains its components, hands the rest on
epoch     none                                         reports losses and timings of the epoch
evaluate  decoder parameters, as they are collected    adds its own, stops learning
test      activations, label, exit.l so far            runs its components, adds their bridges' outputs
evaluated none                                         learns again; the last stage reports the exits
end       none                                         saves its components, reports, stops
"""

from __future__ import annotations

import functools
import json
import struct
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from alrpc.component import ALIGNMENT

FIRST_BYTES = 64 << 10  # at most, of the first message of a packet; what is longer goes on in a second one
INLINE_BYTES = 32 << 10  # a tensor on a CPU of no more is part of the first message: each message costs tens of microseconds
HEADER_ROOM = 4 << 10  # left for the header by inline tensors
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


Place = tuple[str, torch.dtype, list[int], int | None]
"""Name, type and shape of a tensor, and where it is among the inline ones; None for a message of its own."""


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
        """The packet's tensors, and those among them that are yet to be received, on this device."""
        tensors, coming = {}, []
        for name, dtype, shape, start in self.layout:
            where = CPU if start is not None else device
            tensor = torch.empty(shape, dtype=dtype, device=where, pin_memory=pinned and where.type == "cpu")
            if start is None:
                coming.append(tensor)
            elif tensor.numel():
                memory(tensor)[:] = self.inline[start : start + tensor.nbytes]
            tensors[name] = tensor
        return tensors, coming


def encode(packet: Packet) -> tuple[list[Tensor], list[Tensor]]:
    """The messages that begin a packet: header and small tensors; and the tensors that follow as messages of their own."""
    tensors = packet.tensors.items()
    key = tuple((name, tensor.dtype, tuple(tensor.shape), tensor.nbytes, tensor.is_cpu) for name, tensor in tensors)
    text, begin, starts, total = _lay_out(packet.kind, key)
    data = bytearray(total)
    NUMBERS.pack_into(data, 0, total, len(text), packet.epoch, packet.step)
    data[NUMBERS.size : NUMBERS.size + len(text)] = text
    apart = []
    for tensor, start in zip(packet.tensors.values(), starts, strict=True):
        if start is None:
            apart.append(tensor)
        elif tensor.numel():
            data[begin + start : begin + start + tensor.nbytes] = memory(tensor).tobytes()
    whole = torch.frombuffer(data, dtype=torch.uint8)
    return [part for part in (whole[:FIRST_BYTES], whole[FIRST_BYTES:]) if len(part)] if total > FIRST_BYTES else [whole], apart


@functools.lru_cache(LAYOUTS)
def _lay_out(kind: str, key: tuple) -> tuple[bytes, int, tuple[int | None, ...], int]:
    """The layout's JSON, where inline tensors begin, where among them each tensor is (None: apart), and the length of all."""
    layout, used = [], 0
    for name, dtype, shape, size, on_cpu in key:
        start = None
        if size == 0 or (on_cpu and size <= min(INLINE_BYTES, FIRST_BYTES - HEADER_ROOM - used)):
            start = used
            used += _aligned(size)
        layout.append((name, str(dtype).removeprefix("torch."), shape, start))
    text = json.dumps([kind, layout]).encode()
    begin = _aligned(NUMBERS.size + len(text))
    return text, begin, tuple(start for *_, start in layout), begin + used


def rest_of(first: Tensor) -> int:
    """How many bytes follow the first message in a second one."""
    return max(0, NUMBERS.unpack_from(first.numpy())[0] - FIRST_BYTES)


def decode(first: Tensor, rest: Tensor | None) -> Header:
    """The header; `first` may be longer than what was sent."""
    whole = first.numpy() if rest is None else torch.cat([first, rest]).numpy()
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
