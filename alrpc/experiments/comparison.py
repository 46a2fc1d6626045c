"""The comparison of methods: runs every method in turn, round after round."""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from alrpc import __version__, rundir
from alrpc.analysis.comparison.plots import draw
from alrpc.analysis.comparison.summary import read_run, summarise, worst
from alrpc.config import Config
from alrpc.data import read_data
from alrpc.errors import RunFailed, StartupError
from alrpc.experiments.baselines.worker import run_method as run_rank_of_method
from alrpc.network import resolve
from alrpc.pipeline.placement import check_pipeline
from alrpc.planning.partition import choose_split
from alrpc.runtime.local import Launch, process_role, run_processes
from alrpc.runtime.run import new_run_directory
from alrpc.runtime.worker import Options, run_rank
from alrpc.system import cores, local_device

ALONE = ("al-sequential", "bp")  # in one process
Watch = Callable[[str, Path], AbstractContextManager]
"""(label, directory) -> a context that shows the run under way."""
Report = Callable[[dict | str], None]
"""Takes a run's figures, or a message."""


def compare(
    config: Config,
    methods: list[str],
    repeat: int,
    goal: float | None,
    out: Path | None,
    name: str,
    watch: Watch,
    report: Report,
) -> tuple[dict, Path]:
    """Run every method `repeat` times and write comparison.json, accuracy.png and throughput.png.

    Args:
        methods: of `alrpc.experiments.METHODS`.
        goal: the score whose reaching is timed; None for the worst of all runs' best, which all of them reach.
        out: directory to make; None for runs/compare-<name>-<time>.
        watch: shows each run while it is under way.
        report: called with each run's figures, or with the message of one that failed.

    Returns:
        The contents of comparison.json, and the directory.

    Raises:
        UserError: for what the user can put right; nothing is left then.
    """
    config = resolve_shared_config(config, methods, report)
    with rundir.new_directory(out, f"compare-{name}") as directory:
        runs, failures = run_rounds(config, methods, repeat, directory, watch, report)
        if not runs:
            raise RunFailed(failures[0])
        result = combine(config, methods, repeat, goal, runs, failures)
        rundir.write_json(directory / rundir.COMPARISON, result)
        stages = config.pipeline.stages
        title = f"{config.model.name} on {config.data.name}, {stages} {'stage' if stages == 1 else 'stages'}"
        draw(runs, methods, title, directory)
        return result, directory


def resolve_shared_config(config: Config, methods: list[str], report: Report) -> Config:
    """The configuration that all methods are run with; raises UserError when a method cannot be.

    A split that is chosen by measuring is measured once, since all methods train the same blocks.
    """
    config, components = resolve(config)
    if not set(methods) <= {*ALONE, "ddp"}:
        check_pipeline(config, components)
    local_device(config.device)
    if config.pipeline.split == "auto":
        split = choose_split(config, read_data(config.data))
        config = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"split": split})})
        report(f"components of each stage, by what they take: {', '.join(map(str, split))}")
    return config


def run_rounds(
    config: Config, methods: list[str], repeat: int, directory: Path, watch: Watch, report: Report
) -> tuple[list[dict], list[str]]:
    """Run every method `repeat` times, in interleaved rounds.

    Repeat r of every method has seed train.seed + r. A round is one repeat of all methods, each round beginning with another
    one, so that a machine that gets slower or faster does so for all.

    Returns:
        The figures of each run, and the messages of those that failed.

    Raises:
        StartupError: when a run cannot begin; nothing is left of it then.
    """
    runs: list[dict] = []
    failures: list[str] = []
    for number in range(repeat):
        first = number % len(methods)
        for method in [*methods[first:], *methods[:first]]:
            label = f"round {number + 1}/{repeat} {method}"
            folder = directory / f"{method}-{number + 1}"
            try:
                with watch(label, folder):
                    chosen = run_method(method, config, number, folder)
            except RunFailed as error:
                if isinstance(error, StartupError):
                    raise
                failures.append(f"{label}: {error}")
                report(failures[-1])
                continue
            run = read_run(folder, method, number + 1, config.train.seed + number)
            run["chosen"] = run["chosen"] or chosen
            runs.append(run)
            report(run)
    return runs, failures


def combine(config: Config, methods: list[str], repeat: int, goal: float | None, runs: list[dict], failures: list[str]) -> dict:
    """The contents of comparison.json, from the figures of all runs."""
    metric = runs[0]["metric"]
    goal = goal if goal is not None else worst(metric, [run["best"] for run in runs])
    reference = [run for run in runs if run["method"] == "bp"]
    of_method = {method: [run for run in runs if run["method"] == method] for method in methods}
    return {
        "alrpc": __version__,
        "torch": torch.__version__,
        "machine": {"host": socket.gethostname(), "cores": cores(), "processor": platform.processor() or platform.machine()},
        "config": config.model_dump(mode="json"),
        "stages": config.pipeline.stages,
        "repeat": repeat,
        "metric": metric,
        "goal": goal,
        "table": [summarise(found, goal, reference) for found in of_method.values() if found],
        "runs": runs,
        "failures": failures,
    }


def run_method(method: str, config: Config, repeat: int, directory: Path) -> dict:
    """Run a method once, in processes of its own; returns what was chosen for it, or {} where the method chooses for itself.

    Raises:
        RunFailed, StartupError, Interrupted: as `alrpc.runtime.local.run_processes`.
    """
    stages = config.pipeline.stages
    train = config.train.model_copy(update={"seed": config.train.seed + repeat})
    # The other methods take no checkpoints.
    checkpoint = config.checkpoint.model_copy(update={"every": None, "seconds": None, "epoch": False})
    config = config.model_copy(update={"train": train, "checkpoint": checkpoint})
    if method == "al":
        threads = max(1, cores() // stages)
        config = config.model_copy(update={"threads": threads})
        chosen = {"threads": threads, "device": str(local_device(config.device).type)}
        launch = Launch(run_rank, (Options(prepared=directory, quiet=True),), stages + 1, silent=True)
    else:
        chosen = {}
        launch = Launch(run_rank_of_method, (method, directory), 1 if method in ALONE else stages, process_role, silent=True)
    with new_run_directory(directory, method, config):
        run_processes(launch, directory)
    return chosen
