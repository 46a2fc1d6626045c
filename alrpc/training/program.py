"""A run as a stream of packets. This module alone decides when evaluation, checkpoint and end come.

train × n │ epoch │ evaluate │ test × m │ evaluated │ checkpoint │ train × n │ …                  … │ checkpoint │ end
                                                        └ also between two train packets, by steps or time, or before stopping
A run that begins at its last step, since it ended between its last checkpoint and its summary, is only evaluated:

evaluate │ test × m │ evaluated │ end
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from alrpc.config import Checkpoint, Config
from alrpc.data.dataset import Dataset
from alrpc.data.loader import Loaded, count_tests, load_micro_batches, requests, take
from alrpc.training.optimizer import Recipe
from alrpc.training.packet import LABEL, Kind, Packet

Watch = Callable[[Iterator[Loaded]], Iterator[Loaded]]


def program(
    config: Config,
    dataset: Dataset,
    recipe: Recipe,
    start: int = 0,
    stopping: Callable[[], bool] = lambda: False,
    watch: Watch = iter,
) -> Iterator[Packet]:
    """All packets of a run from step `start` on, in order.

    Args:
        stopping: returns whether the run must take a checkpoint and end early; called after each training micro-batch.
        watch: wraps the iterator of micro-batches, for example to measure the loader.

    Raises:
        UserError: when a micro-batch cannot be read, or is of another split or epoch than the one that is due.
    """
    wanted = requests(dataset, config.data.batch_size, recipe.train.seed, recipe.train.epochs, start)
    micro_batches = watch(load_micro_batches(dataset, wanted, recipe.train.seed, config.data.workers))
    tests = count_tests(dataset, config.data.batch_size)
    due = checkpoint_due(config.checkpoint)
    step, last = start, recipe.train.epochs
    for epoch in range(min(start // recipe.micro_batches + 1, last), last + 1):
        for tensors, labels in take(micro_batches, "train", epoch - 1, epoch * recipe.micro_batches - step):
            yield Packet(Kind.TRAIN, epoch, step, {**tensors, LABEL: labels})
            step += 1
            stop = stopping()
            if step % recipe.micro_batches and (due(step) or stop):
                yield Packet(Kind.CHECKPOINT, epoch, step)
                if stop:
                    yield Packet(Kind.END, epoch, step)
                    return
        if step > start:
            yield Packet(Kind.EPOCH, epoch, step)
        yield Packet(Kind.EVALUATE, epoch, step)
        for tensors, labels in take(micro_batches, "test", epoch - 1, tests):
            yield Packet(Kind.TEST, epoch, step, {**tensors, LABEL: labels})
        yield Packet(Kind.EVALUATED, epoch, step)
        stop = stopping()
        if step > start and (due(step) or config.checkpoint.epoch or stop or epoch == last):
            yield Packet(Kind.CHECKPOINT, epoch, step)
        if stop:
            break
    yield Packet(Kind.END, epoch, step)


def checkpoint_due(settings: Checkpoint) -> Callable[[int], bool]:
    """Return a function that says whether a checkpoint is due after a step, by steps or by time; call it after each step."""
    last = time.monotonic()

    def due(step: int) -> bool:
        nonlocal last
        by_steps = settings.every is not None and step % settings.every == 0
        by_time = settings.seconds is not None and time.monotonic() - last >= settings.seconds
        if by_steps or by_time:
            last = time.monotonic()
        return by_steps or by_time

    return due
