"""The training loop of every baseline: epochs of training, each followed by an evaluation."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, compress, cycle, islice, repeat
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

from alrpc.events import Chosen, Evaluation, Event, Finished, Profile, Spans, StageTimes, Start
from alrpc.experiments.baselines.data_parallel import DataParallel
from alrpc.experiments.baselines.pipelined import Pipelined
from alrpc.network import component_digest
from alrpc.system import peak_memory, reset_peak_memory
from alrpc.telemetry.profiler import Profiler, trace_file

T = TypeVar("T")
LEAD = 2  # steps recorded before and after those that count, since the processes take different times to begin
Emit = Callable[[Event], None]


def run(
    engine: DataParallel | Pipelined, batches: Iterator | None, tests: int, test_samples: int, here: int, emit: Emit
) -> None:
    """Train and evaluate; called in every process of the run.

    Args:
        batches: every micro-batch of the run, or None in a process that reads none.
        tests: number of micro-batches in the test split.
        test_samples: number of samples in the test split.
        here: number of processes on this host.
        emit: called with each event; only the first process' events count.
    """
    recipe, timing = engine.recipe, engine.timing
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
    step = 0
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
        timing.test(True)
        seconds = time.perf_counter() - began
        times = StageTimes(0, epoch, step, seconds, timing.read(), peak_memory(engine.device))
        blocks = timing.spans.take(last=epoch == recipe.train.epochs)
        for rank, (of_rank, of_blocks) in enumerate(gather((times, blocks)), 1):
            for block in of_blocks:
                emit(Spans(rank, **block))
            emit(replace(of_rank, stage=rank))
        engine.module.eval()
        engine.agree()
        with torch.no_grad():
            score = torch.tensor(sum(engine.score(batch) for batch in islice(batches, tests)), dtype=torch.float64)
        if distributed.is_initialized():
            distributed.all_reduce(score)
        mean = score.item() / test_samples
        emit(Evaluation(epoch, engine.target.metric, [mean], samples=test_samples, chance=engine.target.chance))
    digests = [component_digest(layer) for layer in engine.module.layers]
    parameters = {"effective": sum(p.numel() for p in engine.module.parameters()), "affiliated": 0}
    ends = gather(Finished(0, peak_memory(engine.device), digests, parameters))
    for rank, event in enumerate(
        ends if isinstance(engine, Pipelined) else ends[:1], 1
    ):  # in ddp all processes have the same parameters
        emit(replace(event, stage=rank))


def record(
    engine: DataParallel | Pipelined,
    batches: Iterator | None,
    tests: int,
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
    of_training = compress(chain([first], batches), cycle([True] * engine.recipe.micro_batches + [False] * tests))
    for step, batch in enumerate(islice(of_training, warm_up + LEAD + steps + LEAD)):
        if step == warm_up:
            profiler.begin(timing)
        timing.begin_packet("train", 1, step)
        engine.learn(batch, step)
        timing.enter("waiting_to_receive")
    blocks = profiler.end(timing)
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
