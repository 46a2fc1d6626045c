"""The stream of micro-batches of a run. It is the same whether this process or worker processes read it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from numpy import ndarray
from torch import Tensor
from torch.utils import data

from alrpc.data.checks import check_batch
from alrpc.data.dataset import Dataset, Split
from alrpc.errors import UserError, describe_exit
from alrpc.objectives.base import Tensors, canonical
from alrpc.posix.forks import ensure_server, make_socket_directory
from alrpc.posix.parent import Parent

AHEAD = 4  # micro-batches that each worker reads ahead
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Request:
    """A request to read one micro-batch: the split, the epoch (from 0) and the indices of the samples."""

    split: SplitName
    epoch: int
    indices: Tensor


class Loaded(NamedTuple):
    """A micro-batch as it was read: of which split and epoch (from 0), its named tensors and its labels."""

    split: SplitName
    epoch: int
    tensors: Tensors
    labels: Tensor


class EpochSize(NamedTuple):
    """The number of samples and of micro-batches that an epoch trains on."""

    samples: int
    micro_batches: int


def training_order(dataset: Dataset, batch_size: int, seed: int, epoch: int) -> Tensor:
    """The indices of the samples that an epoch (from 0) trains on, in order; raises like `checked_order`."""
    return checked_order(dataset.train, seed, epoch, batch_size)


def checked_order(split: Split, seed: int, epoch: int, batch_size: int) -> Tensor:
    """The order of the training split in an epoch (from 0).

    Raises:
        UserError: when the split's `order` gives something else than indices of its samples.
    """
    order, samples = split.order(seed, epoch, batch_size), len(split)
    where = f"train split: its order of epoch {epoch + 1}"
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.ndim != 1 or len(order) == 0:
        given = f"{order.dtype} {tuple(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
        raise UserError(f"{where} is {given}; give indices of samples, a tensor (n,) of torch.int64, at least one")
    least, most = (int(value) for value in order.aminmax())
    if least < 0 or most >= samples:
        raise UserError(f"{where} has the index {least if least < 0 else most}; the split has samples 0 to {samples - 1}")
    return order


def epoch_size(dataset: Dataset, batch_size: int, seed: int, epochs: int = 1) -> EpochSize:
    """The size of a run's first epoch.

    Args:
        epochs: the number of epochs that must all have as many micro-batches as the first one.

    Raises:
        UserError: naming an epoch that has more or fewer, or whose order is wrong.
    """
    samples = len(training_order(dataset, batch_size, seed, 0))
    micro_batches = -(-samples // batch_size)
    if type(dataset.train).order.__module__.startswith("alrpc."):  # takes every sample once, in every epoch
        return EpochSize(samples, micro_batches)
    for epoch in range(1, epochs):
        given = -(-len(training_order(dataset, batch_size, seed, epoch)) // batch_size)
        if given != micro_batches:
            raise UserError(
                f"train split: its order gives {given} micro-batches in epoch {epoch + 1}, but {micro_batches} in epoch 1; "
                "it must give equally many in every epoch, since learning rates and checkpoints count them"
            )
    return EpochSize(samples, micro_batches)


def evaluated_split(dataset: Dataset) -> SplitName:
    """The split that is evaluated after every epoch: the validation split if there is one, which leaves the test split to the end."""
    return "test" if dataset.validation is None else "validation"


def validation_samples(dataset: Dataset) -> int | None:
    """The number of samples in the validation split; None if there is none."""
    return None if dataset.validation is None else len(dataset.validation)


def split_of(dataset: Dataset, name: SplitName) -> Split:
    """A split of a data set, by name."""
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}[name]


def count_micro_batches(dataset: Dataset, split: SplitName, batch_size: int) -> int:
    """The number of micro-batches of an evaluation, which reads a whole split."""
    return -(-len(split_of(dataset, split)) // batch_size)


def evaluation_requests(dataset: Dataset, split: SplitName, batch_size: int, epoch: int) -> Iterator[Request]:
    """Requests for a whole split, to evaluate it after an epoch (from 0)."""
    for indices in torch.arange(len(split_of(dataset, split))).split(batch_size):
        yield Request(split, epoch, indices)


def requests(dataset: Dataset, batch_size: int, seed: int, epochs: int, start: int = 0) -> Iterator[Request]:
    """Requests for the micro-batches of all epochs: for each the training split in its order, then the split that is evaluated.

    Args:
        start: number of micro-batches that have already been trained on; after all of them the last epoch's test split remains.
    """
    micro_batches = epoch_size(dataset, batch_size, seed).micro_batches
    split = evaluated_split(dataset)
    first = start // micro_batches if split == "validation" else min(start // micro_batches, epochs - 1)
    position = start - first * micro_batches
    for epoch in range(first, epochs):
        for indices in training_order(dataset, batch_size, seed, epoch).split(batch_size)[position:]:
            yield Request("train", epoch, indices)
        position = 0
        yield from evaluation_requests(dataset, split, batch_size, epoch)


def read(dataset: Dataset, seed: int, request: Request) -> Loaded:
    """Read one micro-batch.

    Raises:
        UserError: when the split gives something that cannot be trained on, which is checked unless the data set has done so; or
            calls sys.exit.
    """
    known = split_of(dataset, request.split)
    try:
        split = known.during(seed, request.epoch) if request.split == "train" else known
        batch = split.batch(request.indices)
    except SystemExit as error:
        raise UserError(f"the {request.split} split cannot be read: {describe_exit(error)}") from error
    if split is not known or type(split).batch is not Split.batch:
        check_batch(batch, dataset.target, request.split, request.indices)
    return loaded(request.split, request.epoch, *batch)


def loaded(split: SplitName, epoch: int, tensors: Tensors, labels: Tensor) -> Loaded:
    return Loaded(split, epoch, {name: canonical(tensor) for name, tensor in tensors.items()}, canonical(labels))


class _Readable(data.Dataset):
    """The data set from which a worker process of torch's loader reads requests."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, request: tuple[SplitName, int, ndarray]) -> Loaded | UserError:
        split, epoch, indices = request
        try:
            return read(self.dataset, self.seed, Request(split, epoch, torch.from_numpy(indices)))
        except UserError as error:  # if a worker raised it, torch would put a traceback into its message
            return error


def _begin_worker(worker: int) -> None:
    """Let a worker process end with the run's, and not before. A scheduler may send SIGTERM to all processes, but the run must first
    take a checkpoint, after which torch ends its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Parent().watch()  # torch's own watch would take the fork server for the parent
    make_socket_directory()


def load_micro_batches(dataset: Dataset, wanted: Iterable[Request], seed: int, workers: int = 0) -> Iterator[Loaded]:
    """Read the micro-batch of each request, in order.

    Args:
        workers: number of processes that read ahead; 0 to read in this process.

    Raises:
        UserError: raised by a split, for example for a file that cannot be read.
    """
    if workers == 0:
        for request in wanted:
            yield read(dataset, seed, request)
        return
    multiprocessing.set_forkserver_preload(["__main__", __name__])  # torch is imported once, and not by each worker
    ensure_server()
    loader = data.DataLoader(
        _Readable(dataset, seed),
        # Not as tensors, for which this process would make a socket, in a directory that would be left if it is killed.
        sampler=((request.split, request.epoch, request.indices.numpy()) for request in wanted),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        multiprocessing_context="forkserver",  # a process with threads and a GPU must not be forked
        worker_init_fn=_begin_worker,
    )
    for micro_batch in loader:
        if isinstance(micro_batch, UserError):
            raise micro_batch
        yield loaded(*micro_batch)


def take(micro_batches: Iterator[Loaded], split: SplitName, epoch: int, count: int) -> Iterator[tuple[Tensors, Tensor]]:
    """The named tensors and labels of the next `count` micro-batches, which must be of this split and epoch (from 0).

    Raises:
        UserError: when one is of another split or epoch, as happens if an `order` gives another number when it is asked again.
    """
    for taken in range(count):
        read = next(micro_batches, None)
        if read is None or (read.split, read.epoch) != (split, epoch):
            found = "no more" if read is None else f"one of the {read.split} split, epoch {read.epoch + 1}"
            raise UserError(
                f"{split} split: epoch {epoch + 1} needs {count} micro-batches, but after {taken} of them came {found}; "
                "the order of the train split must be the same whenever it is asked for that of an epoch"
            )
        yield read.tensors, read.labels


def take_split(
    micro_batches: Iterator[Loaded], dataset: Dataset, split: SplitName, batch_size: int, epoch: int
) -> Iterator[tuple[Tensors, Tensor]]:
    """The named tensors and labels of a whole split, which is evaluated after an epoch (from 0); raises like `take`."""
    return take(micro_batches, split, epoch, count_micro_batches(dataset, split, batch_size))


def take_epochs(
    micro_batches: Iterator[Loaded], dataset: Dataset, batch_size: int, epochs: int, of_training: int
) -> Iterator[tuple[Tensors, Tensor]]:
    """The named tensors and labels of a run's epochs: each one's of the train split, then those of the split that is evaluated.

    Raises:
        UserError: like `take`.
    """
    for epoch in range(epochs):
        yield from take(micro_batches, "train", epoch, of_training)
        yield from take_split(micro_batches, dataset, evaluated_split(dataset), batch_size, epoch)
