"""The comparison of methods: runs every method in turn, round after round."""

from __future__ import annotations

import platform
import re
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from alrpc import __version__, rundir
from alrpc.analysis.comparison.plots import draw
from alrpc.analysis.comparison.summary import read_run, summarise, worst
from alrpc.config import Config, parse_section
from alrpc.config.objectives import Objective
from alrpc.data import read_data
from alrpc.errors import RunFailed, StartupError, UsageError
from alrpc.experiments import check_methods
from alrpc.experiments.baselines.worker import run_method as run_rank_of_method
from alrpc.network import resolve
from alrpc.pipeline.placement import check_pipeline
from alrpc.planning.partition import choose_split
from alrpc.reading import documents
from alrpc.runtime.local import Launch, process_role, run_processes
from alrpc.runtime.run import new_run_directory
from alrpc.runtime.worker import Options, run_rank
from alrpc.system import cores, local_device

ALONE = ("al-sequential", "bp")  # in one process
OF_OBJECTIVE = ("al", "al-sequential")  # train by the configured objective; all others by back-propagation
Watch = Callable[[str, Path], AbstractContextManager]
"""(label, directory) -> a context that shows the run under way."""
Report = Callable[[dict | str], None]
"""Takes a run's figures, or a message."""


@dataclass(frozen=True)
class Variant:
    """What is compared: a method, with an objective where it has one."""

    label: str
    method: str
    config: Config


def make_variants(config: Config, methods: list[str], objectives: dict[str, Objective]) -> list[Variant]:
    """Every method by every objective where it trains by one, labelled by the objective; else the methods, by their names.

    Args:
        objectives: sections of the configuration by their labels; none of them for the configuration's objective.
    """
    variants = []
    for method in methods:
        if method not in OF_OBJECTIVE or not objectives:
            variants.append(Variant(method, method, config))
            continue
        for name, objective in objectives.items():
            label = f"{name} sequential" if method == "al-sequential" else name
            variants.append(Variant(label, method, config.model_copy(update={"objective": objective})))
    return variants


def with_objective(config: Config, text: str) -> Config:
    """The configuration with another objective, given as its name and fields; raises like `alrpc.config.parse_config`."""
    name, *fields = text.split()
    if name == config.objective.name and not fields:
        return config
    objective: dict = {"name": name}
    for field in fields:
        field_name, equals, value = field.partition("=")
        if not equals:
            raise UsageError(f"--objectives: got {field!r} after {name}; write field=value, such as {name} pooling=mean")
        try:
            objective[field_name] = documents.parse_yaml(value)
        except ValueError as error:
            raise UsageError(f"--objectives: {field_name}: {documents.shown(value)} is not a YAML value") from error
    return config.model_copy(update={"objective": parse_section("objective", objective)})


def compare(
    config: Config,
    methods: list[str],
    objectives: list[str],
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
        objectives: names, each with fields of its own after it, such as "classifier head=linear"; those that have the
            configuration's name and no fields have the configuration's fields. None of them for the configuration's objective.
        goal: the score whose reaching is timed; None for the worst of all runs' best, which all of them reach.
        out: directory to make; None for runs/compare-<name>-<time>.
        watch: shows each run while it is under way.
        report: called with each run's figures, or with the message of one that failed.

    Returns:
        The contents of comparison.json, and the directory.

    Raises:
        UserError: for what the user can put right; nothing is left then.
    """
    chosen = {each: resolve(with_objective(config, each))[0].objective for each in objectives}
    config = resolve_shared_config(config, methods, report)
    variants = make_variants(config, methods, chosen)
    labels = [variant.label for variant in variants]
    with rundir.new_directory(out, f"compare-{name}") as directory:
        runs, failures = run_rounds(variants, repeat, directory, watch, report)
        if not runs:
            raise RunFailed(failures[0])
        result = combine(config, labels, repeat, goal, runs, failures)
        rundir.write_json(directory / rundir.COMPARISON, result)
        stages = config.pipeline.stages
        title = f"{config.model.name} on {config.data.name}, {stages} {'stage' if stages == 1 else 'stages'}"
        draw(runs, labels, title, directory)
        return result, directory


def resolve_shared_config(config: Config, methods: list[str], report: Report) -> Config:
    """The configuration that all methods are run with; raises UserError when a method cannot be.

    A split that is chosen by measuring is measured once, since all methods train the same blocks.
    """
    config, components = resolve(config)
    check_methods(config, methods)
    if config.train.metrics and not set(methods) <= set(OF_OBJECTIVE):
        raise UsageError(
            "train.metrics: back-propagation's engines measure none; leave the field out, or compare al and al-sequential"
        )
    if not set(methods) <= {*ALONE, "ddp"}:
        check_pipeline(config, components)
    local_device(config.device)
    if config.pipeline.split == "auto":
        split = choose_split(config, read_data(config.data, config.train))
        config = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"split": split})})
        report(f"components of each stage, by what they take: {', '.join(map(str, split))}")
    return config


def run_rounds(
    variants: list[Variant], repeat: int, directory: Path, watch: Watch, report: Report
) -> tuple[list[dict], list[str]]:
    """Run everything `repeat` times, in interleaved rounds.

    Repeat r has seed train.seed + r. A round is one repeat of all, each round beginning with another one, so that a machine that
    gets slower or faster does so for all.

    Returns:
        The figures of each run, and the messages of those that failed.

    Raises:
        StartupError: when a run cannot begin; nothing is left of it then.
    """
    runs: list[dict] = []
    failures: list[str] = []
    for number in range(repeat):
        first = number % len(variants)
        for variant in [*variants[first:], *variants[:first]]:
            label = f"round {number + 1}/{repeat} {variant.label}"
            folder = directory / re.sub(r"[^\w.-]+", "-", f"{variant.label}-{number + 1}")
            try:
                with watch(label, folder):
                    chosen = run_method(variant.method, variant.config, number, folder)
            except RunFailed as error:
                if isinstance(error, StartupError):
                    raise
                failures.append(f"{label}: {error}")
                report(failures[-1])
                continue
            run = read_run(folder, variant.label, number + 1, variant.config.train.seed + number)
            run |= {
                "engine": variant.method,
                "objective": variant.config.objective.name if variant.method in OF_OBJECTIVE else None,
            }
            run["chosen"] = run["chosen"] or chosen
            runs.append(run)
            report(run)
    return runs, failures


def combine(config: Config, labels: list[str], repeat: int, goal: float | None, runs: list[dict], failures: list[str]) -> dict:
    """The contents of comparison.json, from the figures of all runs."""
    metric = runs[0]["metric"]
    goal = goal if goal is not None else worst(metric, [run["best"] for run in runs])
    reference = [run for run in runs if run["method"] == "bp"]
    of_method = {label: [run for run in runs if run["method"] == label] for label in labels}
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
