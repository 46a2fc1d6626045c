"""Dynamic batching: what several requests ask at about the same time is computed at once, in a thread that does nothing else."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from alrpc.errors import UserError
from alrpc.inference.predict import NOT_FINITE, is_finite
from alrpc.inference.predictor import Answer, Exit, Predictor


@dataclass
class Sample:
    """A prepared example whose answer is awaited."""

    prepared: Any
    top_k: int
    """How many classes its answer names."""
    answer: Future[Answer] = field(default_factory=Future)


Waiting = queue.Queue[Sample | None]
"""The samples that wait for their batch; None ends the thread that answers them."""


def answer_batches(
    predictor: Predictor,
    waiting: Waiting,
    exit: Exit,
    max_batch: int,
    wait: float,
    computed: Callable[[Sequence[Answer]], object],
) -> None:
    """Answer what waits, batch by batch, until None comes.

    Args:
        exit: see `Predictor.answers`.
        max_batch: the most samples of a batch.
        wait: seconds that the first sample of a batch waits for others.
        computed: called with the answers of each batch that has been computed.
    """
    for batch in batches(waiting, max_batch, wait):
        asked = [sample for sample in batch if sample.answer.set_running_or_notify_cancel()]
        if asked:
            _answer(predictor, asked, exit, computed)


def batches(waiting: Waiting, max_batch: int, wait: float) -> Iterator[list[Sample]]:
    """What waits, in order; a batch is full, or its first sample has waited long enough and no more is there."""
    while (sample := waiting.get()) is not None:
        batch, end = [sample], time.monotonic() + wait
        while len(batch) < max_batch:
            try:
                sample = waiting.get(timeout=left) if (left := end - time.monotonic()) > 0 else waiting.get_nowait()
            except queue.Empty:
                break
            if sample is None:
                waiting.put(None)  # after this batch
                break
            batch.append(sample)
        yield batch


def _answer(predictor: Predictor, batch: Sequence[Sample], exit: Exit, computed: Callable[[Sequence[Answer]], object]) -> None:
    """Give each sample its answer; the fault of one, of which the network cannot compute its output, fails no other."""
    try:
        answers = predictor.answer_prepared([sample.prepared for sample in batch], exit, max(sample.top_k for sample in batch))
    except UserError as error:
        if len(batch) == 1:
            batch[0].answer.set_exception(error)
        else:
            for sample in batch:
                _answer(predictor, [sample], exit, computed)
        return
    except Exception as error:  # a fault of this program: whoever awaits the answer tells it
        for sample in batch:
            sample.answer.set_exception(error)
        return
    computed(answers)
    for sample, answer in zip(batch, answers, strict=True):
        if is_finite(answer):
            sample.answer.set_result(replace(answer, top=answer.top[: sample.top_k]))
        else:
            sample.answer.set_exception(UserError(NOT_FINITE))
