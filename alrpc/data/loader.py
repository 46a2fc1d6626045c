"""The stream of micro-batches of a run. It is the same whether this process or worker processes read it."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils import data

from alrpc.data.dataset import Dataset, count_micro_batches
from alrpc.errors import UserError
from alrpc.objectives.base import Tensors, canonical

AHEAD = 4  # micro-batches that each worker reads ahead


@dataclass(frozen=True)
class Request:
    """A request to read one micro-batch: the split, the epoch (from 0) and the indices of the samples."""

    split: Literal["train", "test"]
    epoch: int
    indices: Tensor


def requests(dataset: Dataset, batch_size: int, seed: int, epochs: int, start: int = 0) -> Iterator[Request]:
    """Requests for all micro-batches of a run: for each epoch the training split in its order, then the test split.

    Args:
        start: number of micro-batches that have already been trained on; after all of them the last epoch's test split remains.
    """
    micro_batches = count_micro_batches(dataset.train, batch_size)
    first = min(start // micro_batches, epochs - 1)
    position = start - first * micro_batches
    for epoch in range(first, epochs):
        for indices in dataset.train.order(seed, epoch, batch_size).split(batch_size)[position:]:
            yield Request("train", epoch, indices)
        position = 0
        for indices in torch.arange(len(dataset.test)).split(batch_size):
            yield Request("test", epoch, indices)


def read(dataset: Dataset, seed: int, request: Request) -> tuple[Tensors, Tensor]:
    """Read the named tensors and labels of one micro-batch."""
    split = dataset.train.during(seed, request.epoch) if request.split == "train" else dataset.test
    tensors, labels = split.batch(request.indices)
    return {name: canonical(tensor) for name, tensor in tensors.items()}, canonical(labels)


class _Readable(data.Dataset):
    """The data set from which a worker process of torch's loader reads requests."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, request: Request) -> tuple[Tensors, Tensor] | UserError:
        try:
            return read(self.dataset, self.seed, request)
        except UserError as error:  # if a worker raised it, torch would put a traceback into its message
            return error


def _ignore_sigterm(worker: int) -> None:
    """Ignore SIGTERM in a worker. A scheduler may send it to all processes, but the run must first take a checkpoint, after which
    torch ends its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def load_micro_batches(
    dataset: Dataset, wanted: Iterable[Request], seed: int, workers: int = 0
) -> Iterator[tuple[Tensors, Tensor]]:
    """Read the named tensors and labels of each request, in order.

    Args:
        workers: number of processes that read ahead; 0 to read in this process.

    Raises:
        UserError: raised by a split, for example for a file that cannot be read.
    """
    if workers == 0:
        for request in wanted:
            yield read(dataset, seed, request)
        return
    loader = data.DataLoader(
        _Readable(dataset, seed),
        sampler=wanted,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        multiprocessing_context="forkserver",  # a process with threads and a GPU must not be forked
        worker_init_fn=_ignore_sigterm,
    )
    for micro_batch in loader:
        if isinstance(micro_batch, UserError):
            raise micro_batch
        tensors, labels = micro_batch
        yield {name: canonical(tensor) for name, tensor in tensors.items()}, canonical(labels)
