"""Run measured rounds, and make figures of what the stages told."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from alrpc import rundir
from alrpc.config import Config
from alrpc.experiments.bench.rounds import CEILING, PIPELINE, ROUNDS, Settings
from alrpc.experiments.bench.worker import measure_rounds
from alrpc.network import resolve
from alrpc.pipeline.placement import check_pipeline
from alrpc.runtime.local import Launch, listening_socket, run_processes
from alrpc.runtime.run import prepare_directory
from alrpc.system import local_device
from alrpc.timing import STATES, computing

Watch = Callable[[Path, int], AbstractContextManager]
"""(directory, rounds) -> a context that shows how far the measurement is."""


@dataclass(frozen=True)
class Measured:
    """Of each round, of each stage: {"pipeline": …, "ceiling": …}, as the stage told, from round 0, which only warmed up.

    And the mean samples in a micro-batch.
    """

    rounds: list[list[dict]]
    samples_per_step: float


def run_rounds(config: Config, settings: Settings, directory: Path, watch: Watch) -> Measured:
    """Run a pipeline's measured rounds, in a directory made for them.

    Raises:
        UserError: for what the user can put right; nothing is left then.
        RunFailed, Interrupted: as `alrpc.runtime.local.run_processes`.
    """
    config, components = resolve(config)
    check_pipeline(config, components)
    local_device(config.device)
    with listening_socket(0) as listener:
        prepare_directory(directory, "bench", config)
        launch = Launch(measure_rounds, (directory, settings), config.pipeline.stages + 1, silent=True)
        with watch(directory, settings.rounds):
            run_processes(launch, directory, listener)
    job, *rounds = read_rounds(directory)
    return Measured(pair_up(rounds), job["samples_per_step"])


def read_rounds(directory: Path) -> list[dict]:
    """What a measurement has written so far: a job, then what each stage told of each round."""
    return rundir.whole_lines(directory / ROUNDS)


def pair_up(events: list[dict]) -> list[list[dict]]:
    """By round, by stage: {"pipeline": …, "ceiling": …}."""
    told: dict[tuple[int, int], dict] = {}
    for event in events:
        told.setdefault((event["round"], event["stage"]), {})[event["kind"]] = event
    rounds, stages = (max(numbers) for numbers in zip(*told, strict=True))
    return [[told[number, stage] for stage in range(1, stages + 1)] for number in range(rounds + 1)]


def rate(of_stages: list[dict], kind: str) -> float:
    """Micro-batches a second in a round's steady state: what its slowest stage does."""
    return min(stage[kind]["steps"] / stage[kind]["seconds"] for stage in of_stages)


def summarise(rounds: list[list[dict]]) -> dict:
    """The figures of all rounds but the one that warmed up: ratio to the ceiling, and the median of what each stage did.

    A round is held against the mean of the ceilings before and after it, so that a machine which gets slower or faster by the
    minute does so for both.
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
    """One stage's medians over the rounds; seconds are those of one step."""

    def median(kind: str, value: Callable[[dict], float]) -> float:
        return statistics.median(value(told[kind]) / told[kind]["steps"] for told in rounds)

    step = median(PIPELINE, lambda told: told["seconds"])
    return {
        "seconds_computing": median(PIPELINE, lambda told: computing(told["states"])),
        **{f"seconds_{state}": median(PIPELINE, lambda told, state=state: told["states"][state]) for state in STATES},
        "seconds_per_step": step,
        "ceiling_seconds_per_step": median(CEILING, lambda told: told["seconds"]),
        "cpu_seconds_per_step": median(PIPELINE, lambda told: told["cpu_seconds"]),
        "ceiling_cpu_seconds_per_step": median(CEILING, lambda told: told["cpu_seconds"]),
        "packets_per_second": 1 / step,
        "bytes_per_second": rounds[0][PIPELINE]["packet_bytes"] / step,
    }
