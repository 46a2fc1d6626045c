"""The packets that travel through a pipeline in one stream: micro-batches, and markers that a stage acts on at their arrival.

kind        tensors                                       what a stage does
train       activations and the objective's tensors       trains its components, sends the output of the last one
            beside them (to stage 1: the label)
epoch       none                                          emits losses and timings of the epoch
evaluate    parameters of exit parts of earlier stages    adds those of its own components, stops learning
test        activations, label, exits so far              (also of the validation split) runs its components, adds their exits
evaluated   none                                          resumes learning; the last stage emits the exits' scores
validated   none                                          the same, of the validation split
checkpoint  none                                          saves its state; emits an event when it is on the disk
restore     none                                          takes the parameters of the checkpoint of the marker's step
end         none                                          stops
feedback    the objective's message about a micro-batch   (to the stage before, on a link of its own) its last component learns from it

round       none                                          (measured runs) emits the round of packets that were received
repeat      none                                          (measured runs) trains on the same packets again, and emits a round
profile     none                                          (profiled runs) starts recording
profiled    none                                          (profiled runs) stops recording
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from torch import Tensor

from alrpc.objectives.base import Microbatch, Tensors

LABEL = "label"
BESIDE, EXIT, PART = "beside.", "exit.", "part."
"""Prefixes of tensor names: beside.<name>, exit.<component>, part.<component>.<parameter>. The blocks' names have no dot."""


class Kind(StrEnum):
    TRAIN = "train"
    EPOCH = "epoch"
    EVALUATE = "evaluate"
    TEST = "test"
    EVALUATED = "evaluated"
    VALIDATED = "validated"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    END = "end"
    FEEDBACK = "feedback"
    ROUND = "round"
    REPEAT = "repeat"
    PROFILE = "profile"
    PROFILED = "profiled"


MICRO_BATCHES = frozenset((Kind.TRAIN, Kind.TEST, Kind.FEEDBACK))
"""The kinds that are micro-batches, or about one; all others are markers."""


@dataclass(frozen=True)
class Packet:
    kind: Kind
    epoch: int
    """The epoch's number, from 1."""
    step: int
    """The micro-batch's number in the run, from 0; for a marker, the number of training micro-batches before it."""
    tensors: Tensors = field(default_factory=dict)

    @property
    def is_marker(self) -> bool:
        return self.kind not in MICRO_BATCHES

    @property
    def microbatch(self) -> Microbatch:
        """The activations, and the tensors that the objective sends beside them."""
        return Microbatch(self.activations, self.named(BESIDE))

    @property
    def activations(self) -> Tensors:
        """The tensors that the blocks take and give."""
        return {name: tensor for name, tensor in self.tensors.items() if name != LABEL and "." not in name}

    def named(self, prefix: str) -> Tensors:
        """The tensors whose names begin with a prefix, by the rest of their names."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def with_microbatch(self, batch: Microbatch) -> Packet:
        """The same packet with another micro-batch."""
        beside = {f"{BESIDE}{name}": tensor for name, tensor in batch.beside.items()}
        return replace(self, tensors={**batch.tensors, **beside})

    def with_tensors(self, tensors: dict[str, Tensor]) -> Packet:
        return replace(self, tensors=tensors)


def describe_packet(packet: tuple[str, int, int] | None) -> str:
    """A packet's kind, epoch and step, for a message."""
    return f"{packet[0]} packet of step {packet[2]}, epoch {packet[1]}" if packet else "none"
