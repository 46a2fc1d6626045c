"""A run as a stream of packets. This module alone decides when evaluation, checkpoint and end come.

train × n │ epoch │ evaluate │ test × m │ evaluated │ checkpoint │ train × n │ …                  … │ checkpoint │ end
                                                        └ also between two train packets, by steps or time, or before stopping
A run that begins at its last step, since it ended between its last checkpoint and its summary, is only evaluated:

evaluate │ test × m │ evaluated │ end

With a validation split it is that split that is evaluated after every epoch, and the test split once, at the end:

train × n │ epoch │ evaluate │ test × v │ validated │ checkpoint │ …  … │ restore │ evaluate │ test × m │ evaluated │ end
                                           with patience, the next epoch waits for the score ┘
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from alrpc.config import Checkpoint, Config
from alrpc.data.dataset import Dataset
from alrpc.data.loader import (
    Loaded,
    Request,
    SplitName,
    evaluated_split,
    evaluation_requests,
    load_micro_batches,
    requests,
    take,
    take_split,
)
from alrpc.training.optimizer import Recipe
from alrpc.training.packet import LABEL, Kind, Packet
from alrpc.training.validation import Validation, has_stopped

Watch = Callable[[Iterator[Loaded]], Iterator[Loaded]]


def program(
    config: Config,
    dataset: Dataset,
    recipe: Recipe,
    start: int = 0,
    stopping: Callable[[], bool] = lambda: False,
    watch: Watch = iter,
    validation: Validation | None = None,
) -> Iterator[Packet]:
    """All packets of a run from step `start` on, in order.

    Args:
        stopping: returns whether the run must take a checkpoint and end early; called after each training micro-batch.
        watch: wraps the iterator of micro-batches, for example to measure the loader.
        validation: what is heard of the validation; needed where the data set has a validation split.

    Raises:
        UserError: when a micro-batch cannot be read, or is of another split or epoch than the one that is due.
    """
    batch_size, seed, last = config.data.batch_size, recipe.train.seed, recipe.train.epochs
    validates = dataset.validation is not None
    due = checkpoint_due(config.checkpoint)
    after_every_epoch = config.checkpoint.epoch or (validates and config.checkpoint.best)

    def load(wanted: Iterable[Request]) -> Iterator[Loaded]:
        return watch(load_micro_batches(dataset, wanted, seed, config.data.workers))

    def evaluate(split: SplitName, epoch: int, micro_batches: Iterator[Loaded]) -> Iterator[Packet]:
        yield Packet(Kind.EVALUATE, epoch, step)
        for tensors, labels in take_split(micro_batches, dataset, split, batch_size, epoch - 1):
            yield Packet(Kind.TEST, epoch, step, {**tensors, LABEL: labels})
        yield Packet(Kind.VALIDATED if split == "validation" else Kind.EVALUATED, epoch, step)

    def is_over(epoch: int) -> bool:
        patience = recipe.train.patience if validates else None
        return patience is not None and has_stopped(dataset.target.metric, validation.scores_of(epoch), patience)

    micro_batches = load(requests(dataset, batch_size, recipe.train, start))
    step, epoch = start, start // recipe.micro_batches
    first = epoch + 1 if validates else min(epoch + 1, last)
    if start == epoch * recipe.micro_batches and is_over(epoch):
        first = last + 1
    for epoch in range(first, last + 1):
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
        yield from evaluate(evaluated_split(dataset), epoch, micro_batches)
        stop = stopping()
        if step > start and (due(step) or after_every_epoch or stop or epoch == last or is_over(epoch)):
            yield Packet(Kind.CHECKPOINT, epoch, step)
        if stop:
            yield Packet(Kind.END, epoch, step)
            return
        if is_over(epoch):
            break
    if validates:
        del micro_batches  # ends the processes that read ahead of a training that has ended early
        best = validation.best_step(step) if config.checkpoint.best else None
        if best is not None and best != step:
            epoch = best // recipe.micro_batches
            yield Packet(Kind.RESTORE, epoch, best)
        yield from evaluate("test", epoch, load(evaluation_requests(dataset, "test", batch_size, epoch - 1)))
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
