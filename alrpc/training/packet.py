"""What travels through a pipeline, in one stream: a micro-batch, or a marker that is acted on when it arrives.

kind        tensors                                       what a stage does
train       activations and what goes beside (a label     trains its components, sends on what leaves the last of them
            to stage 1)
epoch       none                                          reports losses and timings of the epoch
evaluate    exit parts' parameters, as they are collected adds its own, stops learning
test        activations, label, exits so far              runs its components, adds their exits
evaluated   none                                          learns again; the last stage reports the exits' scores
checkpoint  none                                          saves its state; reports when that is on the disk
end         none                                          stops

round       none                                          (measured runs) reports a round of packets that travelled
repeat      none                                          (measured runs) trains on the same packets again, and reports
profile     none                                          (profiled runs) begins to record
profiled    none                                          (profiled runs) ends recording
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from torch import Tensor

from alrpc.objectives.base import Microbatch, Tensors

LABEL = "label"
BESIDE, EXIT, PART = "beside.", "exit.", "part."
"""What the names of tensors begin with: beside.<name>, exit.<component>, part.<component>.<parameter>. Blocks' have no dot."""


class Kind(StrEnum):
    TRAIN = "train"
    EPOCH = "epoch"
    EVALUATE = "evaluate"
    TEST = "test"
    EVALUATED = "evaluated"
    CHECKPOINT = "checkpoint"
    END = "end"
    ROUND = "round"
    REPEAT = "repeat"
    PROFILE = "profile"
    PROFILED = "profiled"


MICRO_BATCHES = frozenset((Kind.TRAIN, Kind.TEST))
"""Every other packet is a marker."""


@dataclass(frozen=True)
class Packet:
    kind: Kind
    epoch: int
    """From 1."""
    step: int
    """The micro-batch's number in the run, from 0; for a marker, how many came before it."""
    tensors: Tensors = field(default_factory=dict)

    @property
    def is_marker(self) -> bool:
        return self.kind not in MICRO_BATCHES

    @property
    def microbatch(self) -> Microbatch:
        """The activations, and what the objective sends beside them."""
        return Microbatch(self.activations, self.named(BESIDE))

    @property
    def activations(self) -> Tensors:
        """The tensors that the blocks know."""
        return {name: tensor for name, tensor in self.tensors.items() if name != LABEL and "." not in name}

    def named(self, prefix: str) -> Tensors:
        """The tensors whose names begin so, by the rest of their names."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def with_microbatch(self, batch: Microbatch) -> Packet:
        """The same packet with another micro-batch."""
        beside = {f"{BESIDE}{name}": tensor for name, tensor in batch.beside.items()}
        return replace(self, tensors={**batch.tensors, **beside})

    def with_tensors(self, tensors: dict[str, Tensor]) -> Packet:
        return replace(self, tensors=tensors)


def describe_packet(packet: tuple[str, int, int] | None) -> str:
    """For a message: a packet's kind, epoch and step."""
    return f"{packet[0]} packet of step {packet[2]}, epoch {packet[1]}" if packet else "none"
