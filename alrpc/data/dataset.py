"""A data set, and the order of its samples, which depends only on seed and epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alrpc.data.checks import check_finite, check_labels
from alrpc.data.preprocessing import ArrayPreprocessing, Preprocessing
from alrpc.errors import UserError
from alrpc.objectives.base import Classes, Target, Tensors, check_target
from alrpc.reading.documents import shown
from alrpc.system import derive_seed


@dataclass(frozen=True)
class Split:
    """Samples and their labels. A subclass for another kind of data overrides `batch`, and other methods where it differs.

    inputs: (N, ...), or any sequence that `batch` converts to tensors. labels: (N,) class indices, integers, or (N, width)
    values, also (N,) if the width is 1.
    """

    inputs: Any
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
    """A training split, a test split, and the kind of labels (`Classes` or `Values`).

    Labels, and inputs that are tensors, are checked when the data set is made; what a `batch` of one's own gives is checked when
    it is read.

    Raises:
        UserError: naming the split and the index of the first label or input that is wrong.
    """

    train: Split
    test: Split
    target: Target
    word_vectors: WordVectors | None = None
    classes: Sequence[str] | None = None
    """Names of the classes, in the order of their indices; None to name them by these, and for values."""
    preprocessing: Preprocessing | None = None
    """How a raw example becomes an input; None for arrays of the shape that the sample's inputs have."""

    def __post_init__(self):
        check_target(self.target)
        _check_classes(self.classes, self.target)
        for name, split in (("train", self.train), ("test", self.test)):
            if not isinstance(split, Split):
                raise UserError(f"{name} split: got {type(split).__name__}; give an alrpc.Split of inputs and labels")
            check_labels(split.labels, self.target, name)
            _check_inputs(split, name)
        train, test = self.train.inputs, self.test.inputs
        if isinstance(train, Tensor) and isinstance(test, Tensor) and (train.dtype, train.ndim) != (test.dtype, test.ndim):
            raise UserError(
                f"test split: inputs are {test.dtype} {tuple(test.shape)}, but those of the train split {train.dtype} "
                f"{tuple(train.shape)}; give both one type and as many dimensions"
            )

    @property
    def sample(self) -> Tensors:
        """One training sample as a micro-batch, for `alrpc.associate`."""
        return self.train.batch(torch.tensor([0]))[0]

    @property
    def class_names(self) -> list[str] | None:
        """The name of each class; None for values."""
        if not isinstance(self.target, Classes):
            return None
        return list(self.classes or map(str, range(self.target.count)))

    @property
    def preprocessed_by(self) -> Preprocessing:
        """How a raw example becomes an input of a network that is trained on this data set."""
        return self.preprocessing or ArrayPreprocessing.of(self.sample)


def _check_classes(classes: object, target: Target) -> None:
    """Refuse, with a UserError, names of classes that are not one different text for each class of the target."""
    if classes is None:
        return
    names = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else []
    count = target.count if isinstance(target, Classes) else 0
    if len(names) != count or len(set(names)) != count or not all(isinstance(name, str) for name in names):
        raise UserError(f"classes: got {shown(classes)} for {target}; give {f'{count} different names' if count else 'none'}")


def _check_inputs(split: Split, name: str) -> None:
    inputs, labels = split.inputs, split.labels
    if not isinstance(inputs, Tensor) and type(split).batch is Split.batch:
        raise UserError(
            f"{name} split: inputs are of type {type(inputs).__name__}; give a tensor (torch.as_tensor), or a Split whose own "
            "batch() makes tensors of them"
        )
    count = 0 if isinstance(inputs, Tensor) and inputs.ndim == 0 else len(inputs)
    if count == 0 or count != len(labels):
        raise UserError(f"{name} split: {count} inputs and {len(labels)} labels; give one label an input, and at least one")
    if isinstance(inputs, Tensor):
        check_finite(inputs, name)


def shuffled(samples: int, seed: int, epoch: int) -> Tensor:
    """A random order of a number of samples, which is a pure function of seed and epoch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(samples, generator=generator)
