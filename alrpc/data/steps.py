"""Training by steps: `train.steps` micro-batches in all, evaluated after every `train.evaluate_every` of them, which are an epoch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from alrpc.config import Data, Train
from alrpc.data.dataset import Dataset, Split
from alrpc.data.loader import checked_order
from alrpc.data.stream import Stream
from alrpc.errors import UsageError, UserError
from alrpc.objectives.base import Tensors
from alrpc.objectives.targets import Target


@dataclass(frozen=True, kw_only=True)
class InSteps(Split):
    """A split of which an epoch is a number of whole micro-batches: of pass after pass over its samples, or of a stream.

    pass 1 │ pass 2 │ pass 3 │ pass 4 │ …   each in an order of its own; samples that fill no micro-batch are left out of a pass
    epoch 1      │ epoch 2      │ epoch 3      …
    """

    split: Split
    steps: int
    """Micro-batches of an epoch."""

    def __len__(self) -> int:
        return len(self.split)

    def check(self, name: str, target: Target) -> None:
        """Nothing, since the split has been checked."""

    def batch(self, indices: Tensor) -> tuple[Tensors, Tensor]:
        return self.split.batch(indices)

    def during(self, seed: int, epoch: int) -> Split:
        return self.split.during(seed, epoch)

    def order(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        step, end = epoch * self.steps, (epoch + 1) * self.steps
        if isinstance(self.split, Stream):
            return torch.arange(step * batch_size, end * batch_size)
        samples = len(checked_order(self.split, seed, 0, batch_size))
        whole = samples // batch_size
        if not whole:
            raise UsageError(
                f"data.batch_size: got {batch_size}, but there are {samples} samples to train on; with train.steps give at most as many"
            )
        parts = []
        while step < end:
            number, begin = divmod(step, whole)
            order = checked_order(self.split, seed, number, batch_size)
            if len(order) // batch_size < whole:
                raise UserError(
                    f"train split: its order gives {len(order)} samples in epoch {number + 1}, but {samples} in epoch 1; it must give "
                    "equally many in every epoch"
                )
            until = min(whole, begin + end - step)
            parts.append(order[begin * batch_size : until * batch_size])
            step += until - begin
        return torch.cat(parts)


def in_steps(dataset: Dataset, data: Data, train: Train) -> Dataset:
    """The data set as a run by steps reads it; as it is for one by epochs.

    Raises:
        UsageError: for several processes that read a stream.
    """
    split = dataset.train
    if isinstance(split, Stream) and data.workers > 1:
        raise UsageError(f"data.workers: got {data.workers}, but a stream is read in order, by one process; use 0 or 1")
    if train.steps is None:
        return dataset
    return dataclasses.replace(dataset, train=InSteps(split.inputs, split.labels, split=split, steps=train.evaluate_every))
