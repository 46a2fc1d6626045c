"""Meters of training: a component's losses, read without a GPU synchronization at every step; and the scores of every exit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alrpc.errors import NonFinite
from alrpc.events import Evaluation, Losses
from alrpc.objectives.base import Objective
from alrpc.objectives.metrics import measure

READ_EVERY = 16  # steps between two transfers from a GPU


@dataclass
class LossMeter:
    """Sums the losses of one component until they are next averaged."""

    number: int
    names: tuple[str, ...]
    nonfinite: str = "stop"
    """stop: a loss that is not finite raises; skip: it is left out of the average."""
    unread: list[tuple[int, tuple[Tensor, ...]]] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    steps: int = 0
    skipped: int = 0

    def add(self, step: int, losses: tuple[Tensor, ...], skipped: bool = False) -> None:
        """Add the losses of a step; they are read from a GPU every few steps, on a CPU at once.

        Raises:
            NonFinite: naming component, step and value.
        """
        self.skipped += skipped
        if losses[0].device.type == "cpu":
            self._count(step, [loss.item() for loss in losses])
            return
        self.unread.append((step, losses))
        if len(self.unread) >= READ_EVERY:
            self.read()

    def read(self) -> None:
        """Read the losses that are still on a GPU, in one transfer."""
        if not self.unread:
            return
        rows = torch.stack([torch.stack(losses) for _, losses in self.unread]).tolist()
        for (step, _), values in zip(self.unread, rows, strict=True):
            self._count(step, values)
        self.unread.clear()

    def _count(self, step: int, values: Sequence[float]) -> None:
        if math.isfinite(sum(values)):
            self.sums = [total + value for total, value in zip(self.sums or [0.0] * len(values), values, strict=True)]
            self.steps += 1
        elif self.nonfinite == "stop":
            named = list(zip(self.names, values, strict=True))
            name, value = next((each for each in named if not math.isfinite(each[1])), named[-1])
            raise NonFinite(
                f"the {name} loss of component {self.number} is {value} at step {step}; "
                "a smaller train.lr or a train.clip_norm may help"
            )

    def take(self, stage: int, epoch: int, step: int) -> Losses | None:
        """The mean losses and the number of skipped updates since the previous call; None if there was no step."""
        self.read()
        if not self.steps and not self.skipped:
            return None
        means = [total / self.steps for total in self.sums] if self.steps else [None] * len(self.names)
        event = Losses(self.number, epoch, step, dict(zip(self.names, means, strict=True)), stage, self.skipped)
        self.sums, self.steps, self.skipped = [], 0, 0
        return event


@dataclass
class ExitScores:
    """The scores of every exit, summed over the micro-batches of a split.

    `parts` holds the modules of components 1 … L that decoding needs, so that the outputs of all exits are decoded in one place.
    """

    objective: Objective
    parts: list[nn.ModuleDict]
    metrics: Sequence[str] = ()
    """The metrics beside the target's own, for which the outputs of every exit are kept; see `alrpc.objectives.metrics`."""
    sums: list[float] = field(default_factory=list)
    samples: int = 0
    labels: list[Tensor] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def add(self, outputs: list[Tensor], labels: Tensor) -> None:
        """Decode the exits of one micro-batch, first to last, and score them against its labels."""
        self.sums = self.sums or [0.0] * len(outputs)
        for index in range(len(outputs)):
            decoded = self.objective.decode(self.parts[: index + 1], outputs[: index + 1])
            self.sums[index] += self.objective.target.score(decoded, labels)
            if self.metrics:
                self.keep(index, decoded)
        if self.metrics:
            self.labels.append(self.objective.target.prepare(labels).cpu())
        self.samples += len(labels)

    def keep(self, index: int, decoded: Tensor) -> None:
        """Keep the outputs of exit `index` + 1 on a micro-batch, as the metrics take them."""
        if len(self.outputs) == index:
            self.outputs.append([])
        taken = self.objective.probabilities(decoded) if self.objective.target.named else decoded
        self.outputs[index].append(taken.float().cpu())

    def measured(self) -> dict[str, list[float]] | None:
        """For each metric, its value at every exit; None if there are no metrics."""
        if not self.metrics:
            return None
        labels, values = torch.cat(self.labels), {name: [] for name in self.metrics}
        for kept in self.outputs:
            outputs = torch.cat(kept)
            for name, of_exits in values.items():
                of_exits.append(measure(name, self.objective.target, labels, outputs))
        return values

    def mean(self) -> list[float]:
        """The score of each exit, averaged over the samples."""
        return [total / self.samples for total in self.sums]

    def event(self, epoch: int, split: str, stage: int | None = None) -> Evaluation:
        target = self.objective.target
        about = self.objective.about_exits if epoch == 1 else ""
        return Evaluation(epoch, target.metric, self.mean(), stage, self.samples, target.chance, about, split, self.measured())
