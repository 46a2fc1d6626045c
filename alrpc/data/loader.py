"""The stream of micro-batches of a run. It is the same whether this process or worker processes read it."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from typing import Literal, NamedTuple

import torch
from numpy import ndarray
from torch import Tensor
from torch.utils import data

from alrpc.config import Train
from alrpc.data.checks import check_batch
from alrpc.data.dataset import Dataset, Split
from alrpc.errors import UserError, describe_exit, error_line
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
    pass_number: int | None = None
    """The pass over the training split, from 0, on which random numbers depend; None for the same as the epoch."""


class Loaded(NamedTuple):
    """A micro-batch as it was read: of which split and epoch (from 0), its named tensors and its labels."""

    split: SplitName
    epoch: int
    tensors: Tensors
    labels: Tensor


class EpochSize(NamedTuple):
    """The number of samples and of micro-batches that an epoch trains on, and that of samples in a pass; 0 for a stream."""

    samples: int
    micro_batches: int
    of_pass: int


def training_order(dataset: Dataset, batch_size: int, seed: int, number: int) -> Tensor:
    """The indices of the samples of a pass (from 0) over the training split, in order.

    Raises:
        UserError: when the split's `order` gives something else.
    """
    order, samples = dataset.train.order(seed, number, batch_size), len(dataset.train)
    where = f"train split: its order of epoch {number + 1}"
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.ndim != 1 or len(order) == 0:
        given = f"{order.dtype} {tuple(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
        raise UserError(f"{where} is {given}; give indices of samples, a tensor (n,) of torch.int64, at least one")
    least, most = (int(value) for value in order.aminmax())
    if least < 0 or most >= samples:
        raise UserError(f"{where} has the index {least if least < 0 else most}; the split has samples 0 to {samples - 1}")
    return order


def epoch_size(dataset: Dataset, batch_size: int, train: Train, throughout: bool = False) -> EpochSize:
    """The size of a run's first epoch: a pass over the training split, or, by steps, what lies between two evaluations.

    Args:
        throughout: whether to check that all passes of the run have as many micro-batches as the first one.

    Raises:
        UserError: naming an epoch that has more or fewer, or whose order is wrong.
    """
    if train.steps is not None and dataset.train.endless:
        return EpochSize(train.evaluate_every * batch_size, train.evaluate_every, 0)
    of_pass = len(training_order(dataset, batch_size, train.seed, 0))
    micro_batches = -(-of_pass // batch_size)
    passes = train.epochs if train.steps is None else -(-train.steps // micro_batches)
    own = not type(dataset.train).order.__module__.startswith("alrpc.")  # those of alrpc take every sample once, in every pass
    for number in range(1, passes if throughout and own else 1):
        _check_pass(-(-len(training_order(dataset, batch_size, train.seed, number)) // batch_size), micro_batches, number)
    if train.steps is None:
        return EpochSize(of_pass, micro_batches, of_pass)
    whole, rest = divmod(train.evaluate_every, micro_batches)
    return EpochSize(whole * of_pass + min(rest * batch_size, of_pass), train.evaluate_every, of_pass)


def _check_pass(given: int, micro_batches: int, number: int) -> None:
    if given != micro_batches:
        raise UserError(
            f"train split: its order gives {given} micro-batches in epoch {number + 1}, but {micro_batches} in epoch 1; "
            "it must give equally many in every epoch, since learning rates and checkpoints count them"
        )


def training_batches(dataset: Dataset, batch_size: int, train: Train, epoch: int) -> Iterator[tuple[int, Tensor]]:
    """For each micro-batch that an epoch (from 0) trains on: the number of the pass that it is of, and the indices of its samples.

    by steps:   pass 1 │ pass 2 │ pass 3 │ pass 4 │ …
                epoch 1      │ epoch 2      │ epoch 3      …
    """
    if train.steps is None:
        yield from ((epoch, indices) for indices in training_order(dataset, batch_size, train.seed, epoch).split(batch_size))
        return
    steps = range(epoch * train.evaluate_every, (epoch + 1) * train.evaluate_every)
    if dataset.train.endless:
        yield from ((0, torch.arange(step * batch_size, (step + 1) * batch_size)) for step in steps)
        return
    of_pass = len(training_order(dataset, batch_size, train.seed, 0).split(batch_size))
    number, batches = None, ()
    for step in steps:
        if step // of_pass != number:
            number = step // of_pass
            batches = training_order(dataset, batch_size, train.seed, number).split(batch_size)
            _check_pass(len(batches), of_pass, number)
        yield number, batches[step % of_pass]


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


def requests(dataset: Dataset, batch_size: int, train: Train, start: int = 0) -> Iterator[Request]:
    """Requests for the micro-batches of all epochs: for each those that it trains on, then the split that is evaluated.

    Args:
        start: number of micro-batches that have already been trained on; after all of them the last epoch's test split remains.
    """
    micro_batches = epoch_size(dataset, batch_size, train).micro_batches
    split = evaluated_split(dataset)
    first = start // micro_batches if split == "validation" else min(start // micro_batches, train.epochs - 1)
    position = start - first * micro_batches
    for epoch in range(first, train.epochs):
        for number, indices in islice(training_batches(dataset, batch_size, train, epoch), position, None):
            yield Request("train", epoch, indices, number)
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
        number = request.epoch if request.pass_number is None else request.pass_number
        split = known.during(seed, number) if request.split == "train" else known
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

    def __getitem__(self, request: tuple[SplitName, int, ndarray, int | None]) -> Loaded | UserError:
        split, epoch, indices, number = request
        try:
            return read(self.dataset, self.seed, Request(split, epoch, torch.from_numpy(indices), number))
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
        UserError: raised by a split, for example for a file that cannot be read; for a data set that cannot be sent to another process.
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
        sampler=((each.split, each.epoch, each.indices.numpy(), each.pass_number) for each in wanted),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        multiprocessing_context="forkserver",  # a process with threads and a GPU must not be forked
        worker_init_fn=_begin_worker,
    )
    try:
        micro_batches = iter(loader)
    except (AttributeError, TypeError, pickle.PicklingError):
        _check_sendable(dataset, workers)
        raise
    for micro_batch in micro_batches:
        if isinstance(micro_batch, UserError):
            raise micro_batch
        yield loaded(*micro_batch)


def _check_sendable(dataset: Dataset, workers: int) -> None:
    """Refuse, with a UserError, a data set that cannot be sent to a worker process."""
    try:
        ForkingPickler.dumps(dataset)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise UserError(
            f"data.workers: got {workers}, but the data set cannot be sent to another process: {error_line(error)}; use "
            "data.workers=0, or a data set that can be pickled"
        ) from error


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
