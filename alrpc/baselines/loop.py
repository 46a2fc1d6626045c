"""The course of a run, the same for every baseline: epochs of learning, each followed by a test."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from itertools import chain, compress, cycle, islice, repeat
from pathlib import Path

import torch
from torch import distributed

from alrpc.baselines.data_parallel import DataParallel
from alrpc.baselines.pipelined import Pipelined
from alrpc.network import component_digest
from alrpc.profiling.recorder import Recorder, trace_file
from alrpc.timing import peak_memory, reset_peak_memory

LEAD = 2  # steps that are recorded before and after those that count: to begin takes each process another while
Report = Callable[[dict], None]


def run(
    engine: DataParallel | Pipelined, batches: Iterator | None, tests: int, test_samples: int, here: int, report: Report
) -> None:
    """Train and test, in every process of the run.

    Args:
        batches: every micro-batch of the run, where they are read; None elsewhere.
        tests: micro-batches of the test split.
        test_samples: its samples.
        here: processes on this host.
        report: called in the first process with the run's events.
    """
    recipe, timing = engine.recipe, engine.timing
    batches = iter(batches) if batches is not None else repeat(None)
    first = next(batches)
    batches = chain([first], batches)
    before = copy.deepcopy(engine.module.state_dict())
    chosen = engine.choose(first, here)
    engine.module.load_state_dict(before)  # trying has moved statistics
    del before
    reset_peak_memory(engine.device)
    report({"event": "chosen", **chosen, "device": str(engine.device)})
    report({"event": "start"})
    step = 0
    for epoch in range(1, recipe.epochs + 1):
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
        stage = {
            "epoch": epoch,
            "step": step,
            "epoch_seconds": time.perf_counter() - began,
            "seconds": timing.read(),
            "peak_memory": peak_memory(engine.device),
        }
        blocks = timing.moments.take(last=epoch == recipe.epochs)
        for rank, event in enumerate(gather({**stage, "blocks": blocks}), 1):
            for block in event.pop("blocks"):
                report({"event": "moments", "stage": rank, **block})
            report({"event": "stage", "stage": rank, **event})
        engine.module.eval()
        engine.agree()
        with torch.no_grad():
            score = torch.tensor(sum(engine.score(batch) for batch in islice(batches, tests)), dtype=torch.float64)
        if distributed.is_initialized():
            distributed.all_reduce(score)
        report(
            {
                "event": "evaluation",
                "epoch": epoch,
                "metric": engine.target.metric,
                "exits": [score.item() / test_samples],
            }
        )
    finished = {
        "digests": [component_digest(layer) for layer in engine.module.layers],
        "parameters": {"effective": sum(p.numel() for p in engine.module.parameters()), "affiliated": 0},
        "peak_memory": peak_memory(engine.device),
    }
    ends = gather(finished)
    for rank, event in enumerate(ends if isinstance(engine, Pipelined) else ends[:1], 1):  # ddp: all the same
        report({"event": "finished", "stage": rank, **event})


def record(
    engine: DataParallel | Pipelined,
    batches: Iterator | None,
    tests: int,
    here: int,
    warm_up: int,
    steps: int,
    directory: Path,
    report: Report,
) -> None:
    """Train for some steps and record so many more with torch.profiler, in every process of the run; arguments as of `run`."""
    report({"event": "profile", "first": warm_up + LEAD, "steps": steps})
    timing, rank = engine.timing, distributed.get_rank() if distributed.is_initialized() else 0
    batches = iter(batches) if batches is not None else repeat(None)
    first = next(batches)
    report({"event": "chosen", **engine.choose(first, here), "device": str(engine.device)})
    recorder = Recorder(engine.device)
    report({"event": "start"})
    engine.module.train()
    timing.enter("waiting_to_receive")
    of_training = compress(chain([first], batches), cycle([True] * engine.recipe.micro_batches + [False] * tests))
    for step, batch in enumerate(islice(of_training, warm_up + LEAD + steps + LEAD)):
        if step == warm_up:
            recorder.begin(timing)
        timing.begin_packet("train", 1, step)
        engine.learn(batch, step)
        timing.enter("waiting_to_receive")
    told = {"blocks": recorder.end(timing)}
    told |= {"operators": recorder.write(trace_file(directory, rank + 1))}
    for number, of_process in enumerate(gather(told), 1):
        for block in of_process["blocks"]:
            report({"event": "moments", "stage": number, **block})
        report({"stage": number, **of_process["operators"]})


def gather(value: dict) -> list[dict]:
    """The value of every process, in the first one; there alone in a run of one."""
    if not distributed.is_initialized():
        return [value]
    values: list = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(value, values)
    return values or []
