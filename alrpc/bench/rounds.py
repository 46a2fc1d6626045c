"""One pipeline, two kinds of rounds in turn: packets that travel, and the same training on what a stage already holds.

    coordinator   train × n, round │ repeat n │ train × n, round │ repeat n │ … │ end
    a stage       trains and sends │ trains on its last packet n times and sends nothing │ …

The second kind is the ceiling: the same processes, at the same time, on the same machine, with every input in the memory of
the process that needs it. Markers keep the two apart without a barrier, as they do everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from alrpc.config import Config
from alrpc.data.dataset import Dataset
from alrpc.data.loader import load_micro_batches, requests
from alrpc.pipeline.mailbox import status, tell
from alrpc.pipeline.packet import Packet
from alrpc.pipeline.stage import Stage
from alrpc.timing import peak_memory
from alrpc.training.optimizer import Recipe

PIPELINE, CEILING = "pipeline", "ceiling"


def at_the_ends(stages: int, window: int) -> int:
    """Steps at each end of a round that do not count: while they pass, the pipeline fills or drains."""
    return stages + 2 * window


def stream_rounds(rounds: int, steps: int) -> Callable[[Config, Dataset, Recipe], Iterator[Packet]]:
    """A stream of so many rounds of each kind, each of so many micro-batches, after one of each that does not count."""

    def stream(config: Config, dataset: Dataset, recipe: Recipe) -> Iterator[Packet]:
        wanted = (
            request for request in requests(dataset, config.data.batch_size, recipe.seed, 1 << 30) if request.split == "train"
        )
        micro_batches = load_micro_batches(dataset, wanted, recipe.seed, config.data.workers)
        step = 0
        for number in range(rounds + 1):
            for _ in range(steps):
                tensors, labels = next(micro_batches)
                yield Packet("train", number, step, {**tensors, "label": labels})
                step += 1
            yield Packet("round", number, step)
            yield Packet("repeat", number, steps)
        yield Packet("end", rounds, step)

    return stream


class MeasuredStage(Stage):
    """A stage that notes when each of its steps ended, and tells of every round."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.actions |= {"round": self.end_round, "repeat": self.repeat}
        self.skipped = at_the_ends(self.plan.stages, self.plan.config.pipeline.window)
        self.held: Packet | None = None
        self.marks: list[dict] = []

    def train(self, packet: Packet) -> None:
        if not self.marks:
            self.mark()
        self.held = packet
        super().train(packet)
        self.mark()

    def mark(self) -> None:
        self.marks.append({"moment": time.perf_counter(), "cpu": time.process_time(), **status.timing.read()})

    def end_round(self, packet: Packet) -> None:
        self.hand_on(packet, {})
        self.tell_round(packet.epoch, PIPELINE)

    def repeat(self, packet: Packet) -> None:
        """Train on the packet that came last so many times, and send nothing."""
        self.hand_on(packet, {})
        sender, self.sender = self.sender, None
        for _ in range(packet.step):
            self.train(self.held)
        self.sender = sender
        self.tell_round(packet.epoch, CEILING)

    def tell_round(self, number: int, kind: str) -> None:
        """Of a round: when its first and its last step were, and what the steps between its two ends took."""
        first, last = self.marks[self.skipped], self.marks[-1 - self.skipped]
        took = {name: last[name] - first[name] for name in first}
        tell(
            "round",
            round=number,
            kind=kind,
            steps=len(self.marks) - 1 - 2 * self.skipped,
            began=self.marks[0]["moment"],
            ended=self.marks[-1]["moment"],
            seconds=took.pop("moment"),
            cpu_seconds=took.pop("cpu"),
            states=took,
            packet_bytes=sum(tensor.nbytes for tensor in self.held.tensors.values()),
        )
        self.marks = []

    def finish(self, packet: Packet) -> None:
        self.hand_on(packet, {})
        if self.sender is not None:
            self.sender.drain()
        tell("finished", peak_memory=peak_memory(self.device))
