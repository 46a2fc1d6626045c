"""What the processes of all baselines have in common."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from alrpc.data.dataset import Dataset
from alrpc.data.loader import SplitName, evaluation_requests, load_micro_batches, requests, take_epochs, take_split
from alrpc.experiments.baselines.model import ModelPart, SequentialModel
from alrpc.objectives.base import Target
from alrpc.pipeline.placement import split_components
from alrpc.system import move
from alrpc.timing import Timing
from alrpc.training.optimizer import Recipe, make_optimizer


def split_layers(model: SequentialModel, world: int, split: list[int] | None) -> list[list[int]]:
    """The consecutive layers of each process, numbered from 1; the head, the last of them, is in the last process."""
    blocks = split_components(len(model.layers) - 1, world, split)
    return [*blocks[:-1], [*blocks[-1], len(model.layers)]]


class Engine:
    """A process of a baseline: its layers, numbered from 1, as one module, with their optimizer and a clock."""

    def __init__(
        self,
        model: SequentialModel,
        layers: list[int],
        rank: int,
        world: int,
        device: torch.device,
        target: Target,
        recipe: Recipe,
    ):
        self.layers, self.rank, self.world, self.device, self.target, self.recipe = layers, rank, world, device, target, recipe
        self.module = move(ModelPart(model, [number - 1 for number in layers]), device, recipe.channels_last)
        if recipe.compile:
            self.module.compile()
        self.optimizer = make_optimizer({"lr": list(self.module.parameters())}, recipe)
        self.timing = Timing()
        self.timing.spans.watch(device)

    def read(self, dataset: Dataset, batch_size: int, workers: int, only: SplitName | None = None) -> Iterator:
        """Read every micro-batch of the run's epochs, or of one split only; a pipeline does so in its first process."""
        seed, epochs = self.recipe.train.seed, self.recipe.train.epochs
        if only is None:
            read = load_micro_batches(dataset, requests(dataset, batch_size, seed, epochs), seed, workers)
            return take_epochs(read, dataset, batch_size, epochs, self.recipe.micro_batches)
        read = load_micro_batches(dataset, evaluation_requests(dataset, only, batch_size, 0), seed, workers)
        return take_split(read, dataset, only, batch_size, 0)

    def choose(self, batch, processes_here: int) -> dict:
        """Choose, by trial, what makes this method fastest on the machine."""
        raise NotImplementedError

    def learn(self, batch, step: int) -> None:
        """Train on one micro-batch."""
        raise NotImplementedError

    def score(self, batch) -> float:
        """The sum of a micro-batch's scores, or this process' part of it."""
        raise NotImplementedError

    def end_epoch(self) -> None:
        """Finish what is under way, at the end of an epoch's micro-batches."""

    def agree(self) -> None:
        """Make the parameters and buffers of all processes fit each other, before an evaluation."""

    def close(self) -> None:
        """End what connects the processes, after the last micro-batch."""
