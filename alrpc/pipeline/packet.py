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

HEADER_BYTES = 1024  # of the first message of every packet; a longer header goes on in a second one
LENGTH_BYTES = 4


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
    """All of a packet but the bytes of its tensors: name, type and shape of each."""

    kind: str
    epoch: int
    step: int
    layout: list[tuple[str, str, list[int]]]


def encode_header(packet: Packet) -> list[Tensor]:
    """The header's messages: one of HEADER_BYTES that begins with the header's length, and the rest if there is any."""
    layout = [(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in packet.tensors.items()]
    text = json.dumps([packet.kind, packet.epoch, packet.step, layout]).encode()
    data = bytearray(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    data.extend(bytes(max(0, HEADER_BYTES - len(data))))
    whole = torch.frombuffer(data, dtype=torch.uint8)
    return [part for part in (whole[:HEADER_BYTES], whole[HEADER_BYTES:]) if len(part)]


def header_rest(first: Tensor) -> int:
    """How many bytes of the header follow its first message."""
    length = int.from_bytes(bytes(first[:LENGTH_BYTES].numpy()), "little")
    return max(0, LENGTH_BYTES + length - HEADER_BYTES)


def decode_header(first: Tensor, rest: Tensor | None) -> Header:
    data = bytes(first.numpy()) + (bytes(rest.numpy()) if rest is not None else b"")
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    return Header(*json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length]))
