"""A process of a measured pipeline, started by `alrpc bench`: rank 0 is the coordinator, rank n is stage n."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from alrpc import rundir
from alrpc.config import load_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset
from alrpc.events import Event, Job, Round
from alrpc.experiments.bench import simulated
from alrpc.experiments.bench.rounds import (
    ROUNDS,
    Gathered,
    MeasuredStage,
    Settings,
    steady_state,
    stream_rounds,
    with_constant_rate,
)
from alrpc.network import resolve
from alrpc.pipeline.process import coordinate
from alrpc.planning.partition import choose_split
from alrpc.runtime.process import Process
from alrpc.runtime.worker import measure_rank


def measure_rounds(process: Process, directory: Path, settings: Settings) -> None:
    """Run this process' rank in the measured rounds of a run whose directory holds its configuration."""
    if settings.links is not None:
        settings.links.enter(int(os.environ["RANK"]))
    ms = settings.stage_ms
    make = MeasuredStage if ms is None else functools.partial(simulated.SimulatedStage, ms / 1000)
    measure_rank(process, directory, make, lambda: feed_rounds(directory, settings))


def feed_rounds(directory: Path, settings: Settings) -> None:
    """Feed the rounds, and write a line for every stage's report of each round."""
    config, components = resolve(load_config(directory / rundir.CONFIG))
    config = with_constant_rate(config)
    gathered = Gathered(config.pipeline.stages)
    reports: list[Round] = []

    def load() -> tuple[Dataset, list[int] | None]:
        dataset = read_data(config.data, config.train) if settings.message_mb is None else simulated.load(settings.message_mb)
        return dataset, choose_split(config, dataset)

    def stream(dataset: Dataset):
        return stream_rounds(config, settings, gathered, dataset)

    with rundir.open_lines(directory / ROUNDS) as file:

        def emit(event: Event) -> None:
            if isinstance(event, Round):
                reports.append(event)
                if len(reports) == config.pipeline.stages:  # complete, since a round ends before the next one begins
                    rundir.append_lines(file, steady_state(reports))
                    reports.clear()
                gathered.add()
            elif isinstance(event, Job):
                rundir.append_lines(file, [{"event": "job", "samples_per_step": event.samples / event.micro_batches}])

        coordinate(config, components, load, stream, directory, emit)
