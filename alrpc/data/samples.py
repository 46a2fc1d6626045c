"""Samples of a map-style data set, such as `torch.utils.data.Dataset`: each is read when it is wanted, with random numbers of its own."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor
from torch.utils.data import Subset

from alrpc.data.dataset import Split
from alrpc.errors import UserError
from alrpc.objectives.base import Tensors
from alrpc.reading.documents import shown
from alrpc.system import derive_seed


class MapStyle(Protocol):
    """A data set that has a length, and for each index a sample: an input and a label, or a mapping that has both by name."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Samples(Split):
    """The samples of a map-style data set: `inputs` gives one for an index.

    A sample's random transforms draw from generators of torch, numpy and Python that are seeded by the run's seed, the epoch and the
    sample's index, so that every engine, and every process that reads ahead, gets the same.
    """

    given: numpy.ndarray
    """The labels as the samples have them, (N, ...)."""
    source: str
    """What it is called in messages."""
    label_column: str
    columns: tuple[str, ...] = ()
    """Of samples that are mappings, the names of the inputs; none for all but the label."""
    draw: tuple[int, int] = (0, 0)
    """Seed and epoch of the random numbers."""

    def during(self, seed: int, epoch: int) -> Samples:
        return dataclasses.replace(self, draw=(seed, epoch))

    def part(self, rows: Tensor) -> Split:
        return dataclasses.replace(super().part(rows), given=self.given[rows.numpy()])

    def batch(self, indices: Tensor) -> tuple[Tensors, Tensor]:
        rows: list[Tensors] = []
        with own_generators() as seed:
            for index in indices.tolist():
                seed(derive_seed(self.draw[0], "sample", self.draw[1], index))
                sample, where = self.inputs[index], f"{self.source}: sample {index}"
                inputs, label = parted(sample, where, self.label_column, self.columns)
                if not numpy.array_equal(label_array(label, where), self.given[index]):
                    raise UserError(
                        f"{where}: has the label {label!r}, but was said to have {self.given[index]}; give both alike"
                    )
                rows.append(named_tensors(inputs, where))
                check_alike(rows[0], rows[-1], where)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, self.labels[indices]


def parted(sample: Any, where: str, label_column: str, columns: Sequence[str] = ()) -> tuple[Any, Any]:
    """The input and the label of a sample.

    Raises:
        UserError: for a sample that does not have both.
    """
    if isinstance(sample, Mapping):
        chosen = columns or [name for name in sample if name != label_column]
        if missing := [name for name in (*chosen, label_column) if name not in sample]:
            raise UserError(f"{where}: has no {missing[0]!r}; it has {', '.join(map(str, sample)) or 'nothing'}")
        return sample[chosen[0]] if len(chosen) == 1 else {name: sample[name] for name in chosen}, sample[label_column]
    if isinstance(sample, tuple | list) and len(sample) == 2:
        return sample[0], sample[1]
    raise UserError(f"{where}: is {type(sample).__name__}; it must be a pair of input and label, or a mapping of names")


def named_tensors(inputs: Any, where: str) -> Tensors:
    """The tensors of a sample's input, by name: those of a mapping, or a single one, `x`; floats of 64 bits become 32."""
    named = inputs if isinstance(inputs, Mapping) else {"x": inputs}
    tensors = {}
    for name, value in named.items():
        try:
            tensor = value if isinstance(value, Tensor) else torch.tensor(numpy.asarray(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{where}: {name!r} is {type(value).__name__}, no numbers; give a transform that makes a tensor"
            ) from error
        if not isinstance(value, numpy.ndarray | Tensor | numpy.number) and hasattr(value, "convert"):
            raise UserError(
                f"{where}: is an image of Pillow's; give a transform that makes a tensor, such as torchvision's ToTensor"
            )
        tensors[name] = tensor.float() if tensor.dtype == torch.float64 else tensor
    return tensors


def as_number(label: Any) -> numpy.ndarray:
    """A label, or all of them, as an array."""
    return label.numpy(force=True) if isinstance(label, Tensor) else numpy.asarray(label)


def label_array(label: Any, where: str) -> numpy.ndarray:
    """The label of a sample as an array; raises UserError for lists of different lengths, or what is no number."""
    try:
        return as_number(label)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: its label is ragged, or no number: {shown(label)}; give a number, or rows of one shape"
        ) from error


def read_labels(dataset: MapStyle, source: str, label_column: str) -> numpy.ndarray:
    """The labels of a map-style data set, (N, ...): its `targets`, as torchvision's data sets have them, if its first sample has the
    first of them; else every sample is read once.

    Raises:
        UserError: for a sample without a label, labels of different shapes, or a Subset with an index that is out of range.
    """
    _check_indices(dataset, source)
    known = _targets(dataset)
    for index in range(len(dataset)):
        where = f"{source}: sample {index}"
        label = label_array(parted(dataset[index], where, label_column)[1], where)
        if index == 0:
            if known is not None and numpy.array_equal(known[0], label):
                return known
            labels = []
        labels.append(label)
        if label.shape != labels[0].shape:
            raise UserError(f"{where}: its label is {label.shape}, that of the first {labels[0].shape}; give one shape")
    if not len(dataset):
        raise UserError(f"{source}: has no samples; give at least one")
    return numpy.stack(labels)


def _check_indices(dataset: MapStyle, source: str) -> None:
    while isinstance(dataset, Subset):
        indices, count = numpy.asarray(dataset.indices), len(dataset.dataset)
        wrong = indices if indices.dtype.kind not in "iu" else indices[(indices < -count) | (indices >= count)]
        if wrong.size:
            raise UserError(
                f"{source}: its Subset has the index {wrong.flat[0]}, but the data set has {count} samples; give 0 to {count - 1}"
            )
        dataset = dataset.dataset


def _targets(dataset: MapStyle) -> numpy.ndarray | None:
    """What a data set says that its labels are, (N, ...); None if it says nothing, or no array of its length."""
    if isinstance(dataset, Subset):
        known = _targets(dataset.dataset)
        return None if known is None else known[list(dataset.indices)]
    known = getattr(dataset, "targets", None)
    if known is None or getattr(dataset, "target_transform", None) is not None:
        return None
    with suppress(TypeError, ValueError):  # of ragged lists
        array = as_number(known)
        return array if array.ndim and len(array) == len(dataset) else None
    return None


def check_alike(first: Tensors, other: Tensors, where: str) -> None:
    """Refuse, with a UserError, a sample whose tensors are not of the types and shapes of another one's."""
    for name, tensor in first.items():
        if name not in other or other[name].shape != tensor.shape or other[name].dtype != tensor.dtype:
            found = f"{other[name].dtype} {tuple(other[name].shape)}" if name in other else "not there"
            raise UserError(
                f"{where}: {name!r} is {found}, but others are {tensor.dtype} {tuple(tensor.shape)}; make them alike"
            )


@contextmanager
def own_generators() -> Iterator[Callable[[int], None]]:
    """Gives a function that seeds the generators of torch, numpy and Python; they are at the end as they were."""

    def seed(number: int) -> None:
        torch.default_generator.manual_seed(number)
        numpy.random.seed(number % (1 << 32))
        random.seed(number)

    of_python, of_numpy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield seed
        finally:
            random.setstate(of_python)
            numpy.random.set_state(of_numpy)
