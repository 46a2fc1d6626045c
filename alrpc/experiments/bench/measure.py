"""Runs measured rounds and summarises what the stages reported."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from alrpc.config import Config
from alrpc.errors import UserError
from alrpc.experiments.bench.rounds import CEILING, PIPELINE, ROUNDS, Settings
from alrpc.experiments.bench.worker import measure_rounds
from alrpc.network import resolve
from alrpc.pipeline.placement import check_pipeline
from alrpc.reading.documents import read_json_lines
from alrpc.reading.regular import Absent
from alrpc.runtime.local import Launch, run_processes
from alrpc.runtime.run import new_run_directory
from alrpc.system import local_device
from alrpc.timing import STATES, computing

Watch = Callable[[Path, int], AbstractContextManager]
"""(directory, rounds) -> a context that shows the progress of the measurement."""


@dataclass(frozen=True)
class Measured:
    """The result of measured rounds."""

    rounds: list[list[dict]]
    """For each round and stage, {"pipeline": …, "ceiling": …} with dicts of `steady_state`; round 0 only warmed up."""
    samples_per_step: float
    """Mean number of samples in a micro-batch."""


def run_rounds(config: Config, settings: Settings, directory: Path, watch: Watch) -> Measured:
    """Run a pipeline's measured rounds, in a directory made for them.

    Raises:
        UserError: for what the user can put right; nothing is left then.
        RunFailed, Interrupted: as `alrpc.runtime.local.run_processes`.
    """
    config, components = resolve(config)
    check_pipeline(config, components)
    local_device(config.device)
    with new_run_directory(directory, "bench", config):
        launch = Launch(measure_rounds, (directory, settings), config.pipeline.stages + 1, silent=True)
        with watch(directory, settings.rounds):
            run_processes(launch, directory)
    job, *rounds = read_rounds(directory)
    check_steady(rounds, settings.steps)
    return Measured(pair_up(rounds), job["samples_per_step"])


def check_steady(rounds: list[dict], steps: int) -> None:
    """Refuse rounds in which a stage ended no step while the others worked, as a busy machine makes them of a few short steps.

    Raises:
        UserError: if there are any.
    """
    missed = sorted({(event["round"], event["kind"]) for event in rounds if event["steps"] == 0})
    if missed:
        which = ", ".join(f"{number} ({kind})" for number, kind in missed)
        raise UserError(
            f"steps: got {steps}, in which the stages did not all work at one time (round {which}); measure more steps"
        )


def read_rounds(directory: Path) -> list[dict]:
    """What a measurement has written so far: a line for the job, then one for each stage in each round."""
    try:
        return [tree for _, tree in read_json_lines(directory / ROUNDS)]
    except Absent:
        return []


def pair_up(events: list[dict]) -> list[list[dict]]:
    """Arrange the lines of rounds by round and stage: {"pipeline": …, "ceiling": …}."""
    found: dict[tuple[int, int], dict] = {}
    for event in events:
        found.setdefault((event["round"], event["stage"]), {})[event["kind"]] = event
    rounds, stages = (max(numbers) for numbers in zip(*found, strict=True))
    return [[found[number, stage] for stage in range(1, stages + 1)] for number in range(rounds + 1)]


def rate(of_stages: list[dict], kind: str) -> float:
    """Micro-batches per second of the slowest stage in a round's steady state."""
    return min(stage[kind]["steps"] / stage[kind]["seconds"] for stage in of_stages)


def summarise(rounds: list[list[dict]]) -> dict:
    """Summarise all rounds but the one that warmed up: ratios to the ceiling, and the medians of each stage.

    A round is compared with the mean of the ceilings before and after it, so that a machine that becomes slower or faster by
    the minute affects both alike.
    """
    ceilings = [1 / rate(stages, CEILING) for stages in rounds]
    around = [(before + after) / 2 for before, after in pairwise(ceilings)]
    rounds = rounds[1:]
    pipeline = [1 / rate(stages, PIPELINE) for stages in rounds]
    ratios = [ceiling / own for ceiling, own in zip(around, pipeline, strict=True)]
    return {
        "efficiency": statistics.median(ratios),
        "rounds": ratios,
        "pipeline_ms": [1000 * own for own in pipeline],
        "ceiling_ms": [1000 * ceiling for ceiling in around],
        "steps_per_second": 1 / statistics.median(pipeline),
        "ceiling_steps_per_second": 1 / statistics.median(around),
        "fill_seconds": statistics.median(s[-1][PIPELINE]["began"] - s[0][PIPELINE]["began"] for s in rounds),
        "drain_seconds": statistics.median(s[-1][PIPELINE]["ended"] - s[0][PIPELINE]["ended"] for s in rounds),
        "stages": [summarise_stage([stages[index] for stages in rounds]) for index in range(len(rounds[0]))],
    }


def summarise_stage(rounds: list[dict]) -> dict:
    """A stage's medians over the rounds, in seconds per step."""

    def median(kind: str, value: Callable[[dict], float]) -> float:
        return statistics.median(value(reduced[kind]) / reduced[kind]["steps"] for reduced in rounds)

    step = median(PIPELINE, lambda reduced: reduced["seconds"])
    return {
        "seconds_computing": median(PIPELINE, lambda reduced: computing(reduced["states"])),
        **{f"seconds_{state}": median(PIPELINE, lambda reduced, state=state: reduced["states"][state]) for state in STATES},
        "seconds_per_step": step,
        "ceiling_seconds_per_step": median(CEILING, lambda reduced: reduced["seconds"]),
        "cpu_seconds_per_step": median(PIPELINE, lambda reduced: reduced["cpu_seconds"]),
        "ceiling_cpu_seconds_per_step": median(CEILING, lambda reduced: reduced["cpu_seconds"]),
        "packets_per_second": 1 / step,
        "bytes_per_second": rounds[0][PIPELINE]["packet_bytes"] / step,
    }
