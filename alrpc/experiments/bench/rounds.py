"""Rounds of a measured pipeline, of two kinds in turn: packets travel, or each stage trains again on those that it holds.

    coordinator   train × n, round │ repeat n                                           │ train × n, round │ … │ end
    a stage       trains and sends │ trains on the packets it still has, sends nothing  │ …

The second kind is the ceiling: the same processes, at the same time, on the same machine, with every input in the memory of
the process that needs it. A round begins when every stage has reported the one before, so that all stages are in one kind.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

from torch import Tensor

from alrpc.config import Config
from alrpc.data.dataset import Dataset
from alrpc.data.loader import load_micro_batches, requests
from alrpc.events import Finished, Round
from alrpc.experiments.bench.slow_links import SlowLinks
from alrpc.objectives.base import Tensors
from alrpc.system import peak_memory
from alrpc.training.packet import LABEL, Kind, Packet
from alrpc.training.stage import Stage

ROUNDS = "rounds.jsonl"
PIPELINE, CEILING = "pipeline", "ceiling"


@dataclass(frozen=True)
class Settings:
    """The settings of a measurement."""

    rounds: int
    steps: int
    """Least number of steps that count in a round; those that fill and drain the pipeline come on top."""
    ceiling: bool = True
    """Whether each round is followed by a round of the ceiling."""
    stage_ms: float | None = None
    """Milliseconds that a simulated stage sleeps per step; None for stages that train."""
    message_mb: float | None = None
    """Size of a packet between simulated stages in MB."""
    links: SlowLinks | None = None
    """The hosts of the processes, if their links are slow."""


def at_the_ends(stages: int, window: int) -> int:
    """The most steps of a round that do not count because the pipeline fills or drains.

    A stage can be ahead of the next one by a window of sent packets, a window of received packets and the packet in work.
    """
    return stages + (stages - 1) * (2 * window + 1)


class Gathered:
    """Lets the stream wait until every stage has reported a round."""

    def __init__(self, stages: int):
        self.stages = stages
        self.reports = 0
        self.changed = threading.Condition()

    def add(self) -> None:
        """Count the report of one stage on a round."""
        with self.changed:
            self.reports += 1
            self.changed.notify()

    def await_rounds(self, rounds: int) -> None:
        """Wait until all stages have reported this number of rounds."""
        with self.changed:
            self.changed.wait_for(lambda: self.reports >= rounds * self.stages)


def with_constant_rate(config: Config) -> Config:
    """The configuration with constant learning rates, because a measurement may exceed its epochs."""
    return config.model_copy(update={"train": config.train.model_copy(update={"schedule": "constant"})})


def endless_micro_batches(config: Config, dataset: Dataset) -> Iterator[tuple[Tensors, Tensor]]:
    """The training split's micro-batches, epoch after epoch, without end."""
    wanted = requests(dataset, config.data.batch_size, config.train.model_copy(update={"epochs": 1 << 30}))
    of_training = (request for request in wanted if request.split == "train")
    for _, _, tensors, labels in load_micro_batches(dataset, of_training, config.train.seed, config.data.workers):
        yield tensors, labels


def stream_rounds(config: Config, settings: Settings, gathered: Gathered, dataset: Dataset) -> Iterator[Packet]:
    """The stream of all rounds; round 0 of each kind only warms up."""
    steps = settings.steps + at_the_ends(config.pipeline.stages, config.pipeline.window)
    step, rounds = 0, 0
    micro_batches = enumerate(endless_micro_batches(config, dataset))
    for number in range(settings.rounds + 1):
        for step, (tensors, labels) in islice(micro_batches, steps):
            yield Packet(Kind.TRAIN, number, step, {**tensors, LABEL: labels})
        yield Packet(Kind.ROUND, number, step)
        rounds += 1
        gathered.await_rounds(rounds)
        if settings.ceiling:
            yield Packet(Kind.REPEAT, number, steps)
            rounds += 1
            gathered.await_rounds(rounds)
    yield Packet(Kind.END, settings.rounds, step)


class MeasuredStage(Stage):
    """A stage that notes the end of each step and reports every round."""

    most_held: int | None = None
    """Number of packets of a round that are kept for the ceiling's round; None for all."""

    def __init__(self, *arguments, **callbacks):
        super().__init__(*arguments, **callbacks)
        self.actions |= {Kind.ROUND: self.end_round, Kind.REPEAT: self.repeat}
        self.held: deque[Packet] = deque(maxlen=self.most_held)
        self.marks: list[dict] = []

    def train(self, packet: Packet) -> None:
        if not self.marks:
            self.held.clear()
            self.mark()
        self.held.append(packet)
        super().train(packet)
        self.mark()

    def mark(self) -> None:
        self.marks.append({"moment": time.perf_counter(), "cpu": time.process_time(), **self.timing.read()})

    def end_round(self, packet: Packet) -> None:
        self.send(packet)
        self.emit_round(packet.epoch, PIPELINE)

    def repeat(self, packet: Packet) -> None:
        """Train on the round's packets again, for as many steps, and send nothing."""
        self.send(packet)
        self.mark()
        send_on, self.send_on = self.send_on, None
        for held in islice(cycle(list(self.held)), packet.step):
            super().train(held)
            self.mark()
        self.send_on = send_on
        self.emit_round(packet.epoch, CEILING)

    def emit_round(self, number: int, measured: str) -> None:
        size = sum(tensor.nbytes for tensor in self.held[-1].tensors.values())
        self.emit(Round(self.number, number, measured, self.marks, size))
        self.marks = []

    def finish(self) -> None:
        """Finish without digests, because the trained parameters are not used."""
        self.emit(Finished(self.number, peak_memory(self.device)))


def steady_state(rounds: list[Round]) -> list[dict]:
    """Reduce the stages' reports of a round to the steady state, in which all of them work.

    It begins when the last stage has ended its first step, and ends when the first stage has ended its last one. The steps of
    each stage that lie within it count, which may be none. All stages are assumed to share one clock, since they are on one machine.
    """
    begins = max(report.marks[1]["moment"] for report in rounds)
    ends = min(report.marks[-1]["moment"] for report in rounds)
    reduced = []
    for report in sorted(rounds, key=lambda report: report.stage):
        within = [mark for mark in report.marks if begins <= mark["moment"] <= ends] or report.marks[:1]
        took = {name: within[-1][name] - within[0][name] for name in within[0]}
        reduced.append(
            {
                "event": "round",
                "stage": report.stage,
                "round": report.round,
                "kind": report.measured,
                "packet_bytes": report.packet_bytes,
                "steps": len(within) - 1,
                "began": report.marks[0]["moment"],
                "ended": report.marks[-1]["moment"],
                "seconds": took.pop("moment"),
                "cpu_seconds": took.pop("cpu"),
                "states": took,
            }
        )
    return reduced
