"""A data set in memory, and its micro-batches in an order that depends on nothing but seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from alrpc.component import Classes, Target, Tensors, canonical
from alrpc.errors import UserError
from alrpc.random_stream import derive_seed


@dataclass(frozen=True)
class Split:
    """Samples and their labels.

    inputs: (N, ...). labels: (N,) class indices, int64, or (N, width) values.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor) -> tuple[Tensors, Tensor]:
        return {"x": self.inputs[indices]}, self.labels[indices]


@dataclass(frozen=True)
class Dataset:
    """What to train on, what to test on, and what the labels are (`Classes` or `Values`)."""

    train: Split
    test: Split
    target: Target

    def __post_init__(self):
        for name, split in (("train", self.train), ("test", self.test)):
            if len(split) == 0 or len(split.inputs) != len(split.labels):
                raise UserError(f"{name} split: {len(split.inputs)} inputs and {len(split.labels)} labels; one label an input")
            if (
                isinstance(self.target, Classes)
                and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < self.target.count
            ):
                raise UserError(
                    f"{name} split: labels from {split.labels.min()} to {split.labels.max()} for {self.target.count} classes"
                )

    @property
    def sample(self) -> Tensors:
        """One training sample as a micro-batch, for `alrpc.associate`."""
        return self.train.batch(torch.tensor([0]))[0]


def shuffled(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of the training samples in an epoch: a pure function of seed and epoch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(samples, generator=generator)


def count_micro_batches(split: Split, batch_size: int) -> int:
    return -(-len(split) // batch_size)


def micro_batches(split: Split, order: Tensor, batch_size: int, start: int = 0) -> Iterator[tuple[Tensors, Tensor]]:
    """Inputs and labels of micro-batches start, start + 1, …; the last may be smaller."""
    for first in range(start * batch_size, len(order), batch_size):
        tensors, labels = split.batch(order[first : first + batch_size])
        yield {name: canonical(tensor) for name, tensor in tensors.items()}, canonical(labels)
