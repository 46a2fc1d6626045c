"""The training loop of every baseline: epochs of training, each followed by an evaluation."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, compress, cycle, islice, repeat
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import distributed

from alrpc.data.dataset import Dataset
from alrpc.data.loader import SplitName, count_micro_batches, split_of
from alrpc.events import Chosen, Evaluation, Event, Finished, Profile, Spans, StageTimes, Start
from alrpc.experiments.baselines.data_parallel import DataParallel
from alrpc.experiments.baselines.engine import Engine
from alrpc.network import component_digest
from alrpc.system import peak_memory, reset_peak_memory
from alrpc.telemetry.profiler import Profiler, trace_file
from alrpc.training.validation import best_epoch, has_stopped

T = TypeVar("T")
LEAD = 2  # steps recorded before and after those that count, since the processes take different times to begin
Emit = Callable[[Event], None]


class Evaluated(NamedTuple):
    """A split that is evaluated: its name, and the numbers of its micro-batches and samples."""

    split: SplitName
    micro_batches: int
    samples: int


def evaluated(dataset: Dataset, split: SplitName, batch_size: int) -> Evaluated:
    return Evaluated(split, count_micro_batches(dataset, split, batch_size), len(split_of(dataset, split)))


def run(
    engine: Engine,
    batches: Iterator | None,
    tests: Iterator | None,
    of_epoch: Evaluated,
    of_end: Evaluated,
    keep_best: bool,
    here: int,
    emit: Emit,
) -> None:
    """Train and evaluate; called in every process of the run.

    Args:
        batches: every micro-batch of the run's epochs, or None in a process that reads none.
        tests: every micro-batch of the test split, or None likewise.
        of_epoch: what is evaluated after every epoch.
        of_end: the test split; with a validation split it is evaluated once, at the end.
        keep_best: whether it is then evaluated with the parameters of the best epoch.
        here: number of processes on this host.
        emit: called with each event; only the first process' events count.
    """
    recipe, timing, metric = engine.recipe, engine.timing, engine.target.metric
    validates = of_epoch.split == "validation"
    batches = iter(batches) if batches is not None else repeat(None)
    first = next(batches)
    batches = chain([first], batches)
    before = copy.deepcopy(engine.module.state_dict())
    chosen = engine.choose(first, here)
    engine.module.load_state_dict(before)  # the trials have changed the buffers
    del before
    reset_peak_memory(engine.device)
    emit(Chosen({**chosen, "device": str(engine.device)}))
    emit(Start())
    step, scores, kept = 0, [], {}
    for epoch in range(1, recipe.train.epochs + 1):
        began = time.perf_counter()
        timing.test(False)
        timing.enter("waiting_to_receive")
        engine.module.train()
        for batch in islice(batches, recipe.micro_batches):
            timing.begin_packet("train", epoch, step)
            engine.learn(batch, step)
            timing.enter("waiting_to_receive")
            step += 1
        engine.end_epoch()
        timing.test(True)
        seconds = time.perf_counter() - began
        times = StageTimes(0, epoch, step, seconds, timing.read(), peak_memory(engine.device))
        scores.append(evaluate(engine, batches, of_epoch, epoch, emit))
        if validates and keep_best and best_epoch(metric, scores) == epoch:
            kept = copy.deepcopy(engine.module.state_dict())
        is_last = epoch == recipe.train.epochs or (validates and has_stopped(metric, scores, recipe.train.patience))
        blocks = timing.spans.take(last=is_last)
        for rank, (of_rank, of_blocks) in enumerate(gather((times, blocks)), 1):
            for block in of_blocks:
                emit(Spans(rank, **block))
            emit(replace(of_rank, stage=rank))
        if is_last:
            break
    if validates:
        if keep_best:
            engine.module.load_state_dict(kept)
            epoch = best_epoch(metric, scores)
        evaluate(engine, tests if tests is not None else repeat(None), of_end, epoch, emit)
    digests = [component_digest(layer) for layer in engine.module.layers]
    parameters = {"effective": sum(p.numel() for p in engine.module.parameters()), "affiliated": 0}
    ends = gather(Finished(0, peak_memory(engine.device), digests, parameters))
    of_all = ends[:1] if isinstance(engine, DataParallel) else ends  # in ddp all processes have the same parameters
    for rank, event in enumerate(of_all, 1):
        emit(replace(event, stage=rank))


def evaluate(engine: Engine, batches: Iterator, what: Evaluated, epoch: int, emit: Emit) -> float:
    """Evaluate a split after an epoch, from the next micro-batches; called in every process, and returns the score in each."""
    engine.module.eval()
    engine.agree()
    with torch.no_grad():
        score = torch.tensor(sum(engine.score(batch) for batch in islice(batches, what.micro_batches)), dtype=torch.float64)
    if distributed.is_initialized():
        distributed.all_reduce(score)
    mean = score.item() / what.samples
    emit(Evaluation(epoch, engine.target.metric, [mean], None, what.samples, engine.target.chance, split=what.split))
    return mean


def record(
    engine: Engine,
    batches: Iterator | None,
    of_epoch: Evaluated,
    here: int,
    warm_up: int,
    steps: int,
    directory: Path,
    emit: Emit,
) -> None:
    """Train for `warm_up` steps and record `steps` more with torch.profiler; called in every process, like `run`."""
    emit(Profile(warm_up + LEAD, steps))
    timing, rank = engine.timing, distributed.get_rank() if distributed.is_initialized() else 0
    batches = iter(batches) if batches is not None else repeat(None)
    first = next(batches)
    emit(Chosen({**engine.choose(first, here), "device": str(engine.device)}))
    profiler = Profiler(engine.device)
    emit(Start())
    engine.module.train()
    timing.enter("waiting_to_receive")
    of_training = compress(
        chain([first], batches), cycle([True] * engine.recipe.micro_batches + [False] * of_epoch.micro_batches)
    )
    for step, batch in enumerate(islice(of_training, warm_up + LEAD + steps + LEAD)):
        if step == warm_up:
            profiler.begin(timing)
        timing.begin_packet("train", 1, step)
        engine.learn(batch, step)
        timing.enter("waiting_to_receive")
    blocks = profiler.end(timing)
    engine.end_epoch()
    operators = profiler.write(trace_file(directory, rank + 1), rank + 1)
    for number, (of_blocks, of_process) in enumerate(gather((blocks, operators)), 1):
        for block in of_blocks:
            emit(Spans(number, **block))
        emit(of_process)


def gather(value: T) -> list[T]:
    """Gather the values of all processes in the first one; the others get an empty list."""
    if not distributed.is_initialized():
        return [value]
    values: list = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(value, values)
    return values or []
