"""A data set, and the order of its samples, which depends only on seed and epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alrpc.errors import UserError
from alrpc.objectives.base import Classes, Target, Tensors
from alrpc.system import derive_seed


@dataclass(frozen=True)
class Split:
    """Samples and their labels. A subclass for another kind of data overrides `batch`, and other methods where it differs.

    inputs: (N, ...), or any sequence that `batch` converts to tensors. labels: (N,) class indices, int64, or (N, width) values.
    """

    inputs: Tensor | Sequence
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensors, Tensor]:
        """The named tensors of the samples with these indices, (n, ...) each, and their labels."""
        return {"x": self.inputs[indices]}, self.labels[indices]

    def during(self, seed: int, epoch: int) -> Split:
        """The split that a run with this seed reads in an epoch (from 0); override it for augmentation."""
        return self

    def order(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        """The indices, (n,) int64, of the samples that an epoch trains on; consecutive groups of `batch_size` form the micro-batches.

        Override it for a sampler: it may leave samples out or repeat them, but must give equally many micro-batches in every
        epoch, and the same indices whenever it is called with the same arguments.
        """
        return shuffled(len(self), seed, epoch)


@dataclass(frozen=True)
class WordVectors:
    """Word vectors that initialize an embedding: `values`, (K, width), for the words with the indices `rows`, (K,)."""

    rows: Tensor
    values: Tensor


@dataclass(frozen=True)
class Dataset:
    """A training split, a test split, and the kind of labels (`Classes` or `Values`)."""

    train: Split
    test: Split
    target: Target
    word_vectors: WordVectors | None = None

    def __post_init__(self):
        for name, split in (("train", self.train), ("test", self.test)):
            if len(split.labels) == 0 or len(split.inputs) != len(split.labels):
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
    """A random order of a number of samples, which is a pure function of seed and epoch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(samples, generator=generator)
