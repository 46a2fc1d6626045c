"""A training split that is read in order, sample after sample, and need have no end."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import numpy
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from alrpc.data.columns import Table, labels_of
from alrpc.data.dataset import Split
from alrpc.data.samples import check_alike, label_array, named_tensors, own_generators, parted
from alrpc.data.tables import column_of
from alrpc.errors import UsageError, UserError
from alrpc.objectives.base import Tensors
from alrpc.objectives.targets import Target
from alrpc.system import derive_seed


class Place:
    """Where the reading of a stream is: an iterator, the seed with which it began, and how many samples it has given. A copy in another
    process begins anew."""

    def __init__(self):
        self.iterator: Iterator[Any] | None = None
        self.seed = self.position = 0

    def __reduce__(self) -> tuple:
        return Place, ()


@dataclass(frozen=True, kw_only=True)
class Stream(Split):
    """The samples of an iterable, by their positions: `inputs` gives the same ones in the same order whenever it is iterated.

    Positions are asked for in order; for one that lies behind, with another seed, and in another process, the iterable begins anew, and
    gives away what lies before. Its beginning and each sample have random numbers of their own, as samples of a map-style data set have.
    """

    endless: ClassVar[bool] = True
    target: Target
    first: Tensors
    """The tensors of the first sample, with whose names, types and shapes all others are."""
    label_column: str
    columns: tuple[str, ...] = ()
    classes: Sequence[str] | None = None
    """The names of the classes, or of the labels; None for values."""
    names_by_index: Sequence[str] | None = None
    """The names of which labels that are numbers are the indices; None where labels themselves are names, or values."""
    seed: int = 0
    place: Place = field(default_factory=Place, compare=False)

    def __len__(self) -> int:
        return sys.maxsize

    def hold_out(self, share: float, seed: int, by_class: bool) -> NoReturn:
        raise UsageError(f"data.validation: got {share}, but a stream has no share to hold out; give data to validate on")

    def order(self, seed: int, epoch: int, batch_size: int) -> NoReturn:
        raise UsageError("train.steps: got null, but the training data is a stream; say for how many steps to train")

    def during(self, seed: int, epoch: int) -> Stream:
        return dataclasses.replace(self, seed=seed)  # which goes on from the same place

    def batch(self, indices: Tensor) -> tuple[Tensors, Tensor]:
        rows: list[Tensors] = []
        labels = []
        with own_generators() as seed:
            for position in indices.tolist():
                where = f"train split: sample {position}"
                inputs, label = parted(self._read(position, seed), where, self.label_column, self.columns)
                labels.append(label_array(label, where))
                rows.append(named_tensors(inputs, where))
                check_alike(self.first, rows[-1], where)
                if labels[-1].shape != labels[0].shape:
                    raise UserError(f"{where}: its label is {labels[-1].shape}, others are {labels[0].shape}; give one shape")
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, self._labels(labels, int(indices[0]))

    def _read(self, position: int, seed: Callable[[int], None]) -> Any:
        """The sample at a position."""
        place = self.place
        if place.iterator is None or place.position > position or place.seed != self.seed:
            seed(derive_seed(self.seed, "stream"))
            place.iterator, place.position, place.seed = iter(self.inputs), 0, self.seed
        while True:
            seed(derive_seed(self.seed, "sample", 0, place.position))
            try:
                sample = next(place.iterator)
            except StopIteration:
                place.iterator = None
                raise UserError(
                    f"train split: the stream ended after {place.position} samples, but the run needs more; give one without an end, "
                    "or fewer train.steps"
                ) from None
            place.position += 1
            if place.position > position:
                return sample

    def _labels(self, given: Sequence[numpy.ndarray], first: int) -> Tensor:
        column = column_of(numpy.stack(given))._replace(names=self.names_by_index)
        table = Table(f"train split: samples from {first} on", {self.label_column: column})
        return labels_of(table, self.label_column, self.target, self.classes, "tested on")


def first_sample(source: Iterable, label_column: str, columns: Sequence[str]) -> Tensors:
    """The tensors of the first sample of a stream, without its label; raises UserError where it has none."""
    where = "train split: sample 0"
    with own_generators() as seed:
        seed(0)
        for sample in source:
            return named_tensors(parted(sample, where, label_column, columns)[0], where)
    raise UserError("train split: the stream has no samples; give at least one")


def is_stream(source: object) -> bool:
    """Whether something is iterated, and has no length; torch's `IterableDataset` may have one."""
    if isinstance(source, IterableDataset):
        return True
    return isinstance(source, Iterable) and not hasattr(source, "__len__") and not hasattr(source, "__getitem__")


def check_stream(source: Iterable) -> None:
    """Refuse, with a UsageError, what cannot be iterated anew."""
    if iter(source) is iter(source):
        raise UsageError(
            f"train: got {type(source).__name__}, whose iterators are one and the same; give an object whose __iter__ makes one that "
            "begins anew, so that a run can be resumed"
        )
