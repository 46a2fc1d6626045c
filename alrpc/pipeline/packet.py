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

import json
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alrpc.component import ALIGNMENT

FIRST_BYTES = 64 << 10  # at most, of the first message of a packet; what is longer goes on in a second one
INLINE_BYTES = 32 << 10  # a tensor on a CPU of no more is part of the first message: each message costs tens of microseconds
HEADER_ROOM = 4 << 10  # left for the header by inline tensors
PREFIX_BYTES = 8  # how long header and inline tensors are together, and the header alone


@dataclass(frozen=True)
class Packet:
    kind: str
    epoch: int
    """From 1."""
    step: int
    """The micro-batch's number in the run, from 0; for a marker, how many came before it."""
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """All of a packet but the tensors that are messages of their own."""

    kind: str
    epoch: int
    step: int
    layout: list[tuple[str, str, list[int], int | None]]
    """Name, type and shape of each tensor, and where it is among the inline ones; None for a message of its own."""
    inline: Tensor
    """Bytes."""

    def place(self, pinned: bool, device: torch.device) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The packet's tensors, and those among them that are yet to be received, on this device."""
        tensors, coming = {}, []
        for name, dtype, shape, start in self.layout:
            where = torch.device("cpu") if start is not None else device
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=where, pin_memory=pinned and where.type == "cpu")
            if start is None:
                coming.append(tensor)
            elif tensor.numel():
                as_bytes(tensor).copy_(self.inline[start : start + tensor.nbytes])
            tensors[name] = tensor
        return tensors, coming


def as_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory, (bytes,), uint8."""
    return tensor.reshape(-1).view(torch.uint8)


def encode(packet: Packet) -> tuple[list[Tensor], list[Tensor]]:
    """The messages that begin a packet: header and small tensors; and the tensors that follow as messages of their own."""
    layout, inline, apart, used = [], [], [], 0
    for name, tensor in packet.tensors.items():
        size, start = tensor.nbytes, None
        if size == 0 or (tensor.device.type == "cpu" and size <= min(INLINE_BYTES, FIRST_BYTES - HEADER_ROOM - used)):
            start = used
            inline.append((start, tensor))
            used += _aligned(size)
        else:
            apart.append(tensor)
        layout.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), start))
    text = json.dumps([packet.kind, packet.epoch, packet.step, layout]).encode()
    begin = _aligned(PREFIX_BYTES + len(text))
    whole = torch.empty(begin + used, dtype=torch.uint8)
    prefix = len(whole).to_bytes(4, "little") + len(text).to_bytes(4, "little")
    whole[: PREFIX_BYTES + len(text)] = torch.frombuffer(bytearray(prefix + text), dtype=torch.uint8)
    for start, tensor in inline:
        if tensor.numel():
            whole[begin + start : begin + start + tensor.nbytes] = as_bytes(tensor)
    return [part for part in (whole[:FIRST_BYTES], whole[FIRST_BYTES:]) if len(part)], apart


def rest_of(first: Tensor) -> int:
    """How many bytes follow the first message in a second one."""
    return max(0, int.from_bytes(bytes(first[:4].numpy()), "little") - FIRST_BYTES)


def decode(first: Tensor, rest: Tensor | None) -> Header:
    """The header; `first` may be longer than what was sent."""
    whole = first if rest is None else torch.cat([first, rest])
    length = int.from_bytes(bytes(whole[4:PREFIX_BYTES].numpy()), "little")
    text = bytes(whole[PREFIX_BYTES : PREFIX_BYTES + length].numpy())
    return Header(*json.loads(text), inline=whole[_aligned(PREFIX_BYTES + length) :])


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
