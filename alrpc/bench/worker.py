"""One process of a measured pipeline: rank 0 is the coordinator, rank n is stage n. Started by `alrpc bench`."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from alrpc.process import keep_memory, leave, log_line, log_to, tell_agent, watch_parent

if __name__ == "__main__":
    keep_memory()
    watch_parent()  # before the long import of torch

from alrpc.assembly import build_network, resolve
from alrpc.bench import simulated
from alrpc.bench.measure import ROUNDS
from alrpc.bench.rounds import Gathered, MeasuredStage, Settings, recipe_of, steady_state, stream_rounds
from alrpc.config import load_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset
from alrpc.pipeline.coordinator import coordinate
from alrpc.pipeline.stage import run_stage
from alrpc.pipeline.topology import place_here
from alrpc.planning import choose_split
from alrpc.training.optimizer import Recipe
from alrpc.worker import code_for, explain


def main(directory: Path, settings: Settings) -> None:
    """Do this process' part in measured rounds of the run whose directory holds its configuration; ends the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank:
        _, _, log = log_to(directory, f"stage-{rank}")
        ms = settings.stage_ms
        make = MeasuredStage if ms is None else functools.partial(simulated.SimulatedStage, ms / 1000)
        leave(run_stage(place_here(rank, log), world, build_network, make))
    log_to(directory, "coordinator")
    try:
        measure(directory, settings)
    except Exception as error:
        log_line(traceback.format_exc())
        code = code_for(error)
        tell_agent(explain(error, directory), code)
        leave(code)
    leave(0)


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
