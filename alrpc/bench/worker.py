"""One process of a measured pipeline: rank 0 is the coordinator, rank n is stage n. Started by `alrpc bench`."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

from alrpc.process import keep_memory, watch_parent

if __name__ == "__main__":
    keep_memory()
    watch_parent()  # before the long import of torch

from alrpc.assembly import resolve
from alrpc.bench import simulated
from alrpc.bench.measure import ROUNDS
from alrpc.bench.rounds import Gathered, MeasuredStage, Settings, recipe_of, steady_state, stream_rounds
from alrpc.config import load_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset
from alrpc.pipeline.coordinator import coordinate
from alrpc.planning import choose_split
from alrpc.training.optimizer import Recipe
from alrpc.worker import take_part


def main(directory: Path, settings: Settings) -> None:
    """Do this process' part in measured rounds of the run whose directory holds its configuration; ends the process."""
    ms = settings.stage_ms
    make = MeasuredStage if ms is None else functools.partial(simulated.SimulatedStage, ms / 1000)
    take_part(directory, make, lambda: measure(directory, settings))


def measure(directory: Path, settings: Settings) -> None:
    """Feed the rounds, and write what every stage tells of each to a file, a line each."""
    config, components = resolve(load_config(directory / "config.yaml"))

    gathered = Gathered(config.pipeline.stages)
    told: list[dict] = []

    def load() -> tuple[Dataset, Recipe, list[int] | None]:
        mb = settings.message_mb
        dataset = read_data(config.data) if mb is None else simulated.load(mb)
        return dataset, recipe_of(config, dataset), choose_split(config, dataset)

    with (directory / ROUNDS).open("w", encoding="utf-8", buffering=1) as file:

        def report(event: dict) -> None:
            if event["event"] == "round":
                told.append(event)
                if len(told) == config.pipeline.stages:  # a round is over before the next one begins
                    file.writelines(json.dumps(reduced) + "\n" for reduced in steady_state(told))
                    told.clear()
                gathered.tell()
            elif event["event"] == "job":
                samples = len(event["dataset"].train) / event["recipe"].micro_batches
                file.write(json.dumps({"event": "job", "samples_per_step": samples}) + "\n")

        coordinate(config, components, load, directory, report, stream_rounds(settings, gathered))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Settings(**json.loads(sys.argv[2])))
