"""A data set, and the order of its samples, which depends only on seed and epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from alrpc.config import Train
from alrpc.data.checks import check_finite, check_labels
from alrpc.data.preprocessing import ArrayPreprocessing, Preprocessing
from alrpc.errors import UsageError, UserError
from alrpc.objectives.base import Tensors
from alrpc.objectives.targets import Classes, Target, check_target
from alrpc.reading.documents import shown
from alrpc.system import derive_seed


@dataclass(frozen=True)
class Split:
    """Samples and their labels. A subclass for another kind of data overrides `batch`, and other methods where it differs.

    inputs: (N, ...), or any sequence that `batch` converts to tensors. labels: (N,) class indices, integers; or (N, count)
    labels, 0 and 1; or (N, width) values, also (N,) if the width is 1.
    """

    inputs: Any
    labels: Tensor
    endless: ClassVar[bool] = False
    """Whether it is a stream, of which samples are asked for by their positions, and which no pass ends."""

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

    def part(self, rows: Tensor) -> Split:
        """A split of the same kind, of the samples with these indices, (n,) int64. Override it where another field than inputs and
        labels has something of each sample, or where the class cannot be made of its fields.

        Inputs that are a tensor or an array stay one, and others become a `torch.utils.data.Subset`.

        Raises:
            UserError: when the class cannot be made of its fields.
        """
        inputs = self.inputs
        if isinstance(inputs, Tensor):
            inputs = inputs[rows]
        elif isinstance(inputs, np.ndarray):
            inputs = inputs[rows.numpy()]
        else:
            inputs = Subset(inputs, rows.tolist())
        try:
            return dataclasses.replace(self, inputs=inputs, labels=self.labels[rows])
        except TypeError as error:
            raise UserError(
                f"data.validation: a part of {type(self).__name__} cannot be made of its fields ({error}); override its method "
                "`part`, or give the data set a validation split"
            ) from error

    def hold_out(self, share: float, seed: int, by_class: bool) -> tuple[Split, Split]:
        """Two parts of the split, in its order: what remains, and a share of the samples, or of each class, drawn by the seed."""
        held = torch.zeros(len(self), dtype=torch.bool)
        held[draw_share(self.labels, share, seed, by_class)] = True
        return self.part((~held).nonzero().flatten()), self.part(held.nonzero().flatten())


@dataclass(frozen=True)
class WordVectors:
    """Word vectors that initialize an embedding: `values`, (K, width), for the words with the indices `rows`, (K,)."""

    rows: Tensor
    values: Tensor


@dataclass(frozen=True)
class Dataset:
    """A training split, a test split, what is learned (`Classes`, `Labels` or `Values`), and perhaps a validation split.

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
    """Names of the classes, or of the labels, in the order of their indices; None to name them by these, and for values."""
    preprocessing: Preprocessing | None = None
    """How a raw example becomes an input; None for arrays of the shape that the sample's inputs have."""
    validation: Split | None = None
    """What is evaluated after every epoch in place of the test split, which then is evaluated once, at the end."""

    def __post_init__(self):
        check_target(self.target)
        _check_classes(self.classes, self.target)
        splits = {"train": self.train, "test": self.test}
        if self.validation is not None:
            splits["validation"] = self.validation
        for name, split in splits.items():
            if not isinstance(split, Split):
                raise UserError(
                    f"{name} split: got {type(split).__name__}; give an alrpc.Split of inputs and labels, or use alrpc.as_dataset"
                )
            if split.endless:
                if name != "train":
                    raise UsageError(f"{name} split: got a stream; give data with a length, of which all is evaluated")
                continue
            check_labels(split.labels, self.target, name)
            _check_inputs(split, name)
            train, other = self.train.inputs, split.inputs
            if (
                isinstance(train, Tensor)
                and isinstance(other, Tensor)
                and (train.dtype, train.ndim) != (other.dtype, other.ndim)
            ):
                raise UserError(
                    f"{name} split: inputs are {other.dtype} {tuple(other.shape)}, but those of the train split {train.dtype} "
                    f"{tuple(train.shape)}; give both one type and as many dimensions"
                )

    @cached_property
    def sample(self) -> Tensors:
        """One training sample as a micro-batch, for `alrpc.associate`."""
        return self.train.batch(torch.tensor([0]))[0]

    @property
    def class_names(self) -> list[str] | None:
        """The name of each class, or of each label; None for values."""
        return list(self.classes or map(str, range(self.target.width))) if self.target.named else None

    @property
    def preprocessed_by(self) -> Preprocessing:
        """How a raw example becomes an input of a network that is trained on this data set."""
        return self.preprocessing or ArrayPreprocessing.of(self.sample)


def _check_classes(classes: object, target: Target) -> None:
    """Refuse, with a UserError, names that are not one different text for each class, or label, of the target."""
    if classes is None:
        return
    names = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else []
    count = target.width if target.named else 0
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


def hold_out(dataset: Dataset, share: float, train: Train) -> Dataset:
    """The data set with a share of its training split, drawn by the seed of the run, as the validation split: see `Split.hold_out`.

    Raises:
        UserError: when it has a validation split already, nothing would be left to train or to validate on, or there is none
            although the run needs one.
    """
    if not share and train.patience is not None and dataset.validation is None:
        raise UserError(
            f"train.patience: got {train.patience}, but there is no validation split to judge by; set data.validation, to 0.1 for "
            "example"
        )
    if not share:
        return dataset
    if dataset.validation is not None:
        raise UserError(
            f"data.validation: got {share}, but the data set has a validation split of its own; leave the field out"
        )
    rest, validation = dataset.train.hold_out(share, train.seed, isinstance(dataset.target, Classes))
    if not len(rest) or not len(validation):
        raise UserError(
            f"data.validation: {share} of {len(dataset.train)} training samples holds out {len(validation)} and leaves {len(rest)} "
            "to train on; give a share that leaves both"
        )
    return dataclasses.replace(dataset, train=rest, validation=validation)


def weigh_classes(dataset: Dataset, weights: Sequence[float] | Literal["balanced"] | None) -> Dataset:
    """The data set whose classes weigh this much in cross entropies; see `train.class_weights`.

    Raises:
        UsageError: when it has values, another number of classes, or, to be balanced, no sample of a class to train on.
    """
    if weights is None:
        return dataset
    target = dataset.target
    if not isinstance(target, Classes):
        raise UsageError(f"train.class_weights: got {shown(weights)}, but the target is {target}; leave the field out")
    if weights == "balanced" and dataset.train.endless:
        raise UsageError("train.class_weights: got balanced, but the classes of a stream cannot be counted; give the weights")
    if weights == "balanced":
        counts = dataset.train.labels.long().bincount(minlength=target.count)
        if not counts.all():
            missing = dataset.class_names[int((counts == 0).nonzero()[0])]
            raise UsageError(
                f"train.class_weights: got balanced, but class {missing} has no sample to train on; give the weights"
            )
        weights = (len(dataset.train) / (target.count * counts.double())).tolist()
    if len(weights) != target.count:
        raise UsageError(
            f"train.class_weights: got {len(weights)} weights, but there are {target.count} classes; give one for each"
        )
    return dataclasses.replace(dataset, target=Classes(target.count, tuple(weights)))


def draw_share(labels: Tensor, share: float, seed: int, by_class: bool) -> Tensor:
    """The indices, (n,), of a share, rounded, of the samples with these labels, or of those of each class; never of all of them."""
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(seed, "validation")))
    groups = (drawn,)
    if by_class:
        classes = labels[drawn].long()
        groups = drawn[classes.argsort(stable=True)].split(classes.bincount().tolist())
    return torch.cat([group[:-1][: round(share * len(group))] for group in groups])
