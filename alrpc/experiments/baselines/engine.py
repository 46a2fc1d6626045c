"""What the processes of all baselines have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from alrpc.data.dataset import Dataset
from alrpc.data.loader import SplitName, evaluation_requests, load_micro_batches, requests, take_epochs, take_split
from alrpc.experiments.baselines.model import ModelPart, SequentialModel
from alrpc.objectives.targets import Target
from alrpc.pipeline.placement import split_components
from alrpc.system import move
from alrpc.timing import Timing
from alrpc.training.optimizer import Recipe, make_optimizer


@dataclass(frozen=True)
class Role:
    """The part that a process has in a run of a baseline."""

    method: str
    rank: int
    world: int
    device: torch.device
    target: Target
    recipe: Recipe
    split: list[int] | None = None
    """`pipeline.split`, which counts blocks; for methods that split the network."""


def own_layers(role: Role, model: SequentialModel) -> list[int]:
    """The consecutive layers, numbered from 1, of a process among which they are split; the last one has the head too."""
    blocks = split_components(len(model.layers) - 1, role.world, role.split)[role.rank]
    return [*blocks, len(model.layers)] if role.rank == role.world - 1 else blocks


class Engine(ABC):
    """A process of a baseline: its layers, numbered from 1, as one module, with their optimizer and a clock."""

    def __init__(self, role: Role, model: SequentialModel, layers: list[int]):
        self.method, self.rank, self.world, self.device = role.method, role.rank, role.world, role.device
        self.layers, self.target, self.recipe = layers, role.target, role.recipe
        self.module = move(ModelPart(model, [number - 1 for number in layers]), role.device, role.recipe.channels_last)
        if role.recipe.compile:
            self.module.compile()
        self.optimizer = make_optimizer({"lr": list(self.module.parameters())}, role.recipe)
        self.timing = Timing()
        self.timing.spans.watch(role.device)

    def read(self, dataset: Dataset, batch_size: int, workers: int, only: SplitName | None = None) -> Iterator:
        """Read every micro-batch of the run's epochs, or of one split only; a pipeline does so in its first process."""
        seed, epochs = self.recipe.train.seed, self.recipe.train.epochs
        if only is None:
            read = load_micro_batches(dataset, requests(dataset, batch_size, self.recipe.train), seed, workers)
            return take_epochs(read, dataset, batch_size, epochs, self.recipe.micro_batches)
        read = load_micro_batches(dataset, evaluation_requests(dataset, only, batch_size, 0), seed, workers)
        return take_split(read, dataset, only, batch_size, 0)

    @abstractmethod
    def choose(self, batch, processes_here: int) -> dict:
        """Choose, by trial, what makes this method fastest on the machine."""

    @abstractmethod
    def learn(self, batch, step: int) -> None:
        """Train on one micro-batch."""

    @abstractmethod
    def score(self, batch) -> float:
        """The sum of a micro-batch's scores, or this process' part of it."""

    def end_epoch(self) -> None:  # noqa: B027 (most methods have nothing to do here)
        """Finish what is under way, at the end of an epoch's micro-batches."""

    def agree(self) -> None:  # noqa: B027 (most methods have nothing to do here)
        """Make the parameters and buffers of all processes fit each other, before an evaluation."""

    def close(self) -> None:  # noqa: B027 (most methods have nothing to do here)
        """End what connects the processes, after the last micro-batch."""
