"""A run: its directory, and its life in either engine."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

import torch

from alrpc.assembly import build_network, local_device, make_recipe, recipe_for, resolve
from alrpc.checkpoint import (
    checkpoint_directory,
    commit,
    component_file,
    describe_run,
    due_at,
    empty_sample,
    find_checkpoint,
    load_component,
    load_learners,
    read_manifest,
    remove,
    snapshot,
    write_files,
)
from alrpc.config import Config, Train, load_config, parse_section, save_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset, count_micro_batches
from alrpc.errors import Interrupted, Stopped, UserError
from alrpc.network import Network, describe_components
from alrpc.observe.progress import Progress
from alrpc.observe.record import Report, recorded, write_summary
from alrpc.pipeline.coordinator import StageFailed, coordinate, prune_on_every_host, start_of
from alrpc.pipeline.mailbox import Resume
from alrpc.planning import choose_split
from alrpc.resume import STOP, claimed, offer, read_resume, reopen
from alrpc.training.losses import NonFinite
from alrpc.training.optimizer import Recipe
from alrpc.training.sequential import make_learners, train_sequentially

# Exit codes of the coordinator. Nothing of a refused run is kept; what failed for good would fail again; sysexits.h calls the
# last one EX_TEMPFAIL, «try again later».
FAILED, REFUSED, FAILED_FOR_GOOD, STOPPED = 1, 2, 3, 75


def create_run_directory(out: Path | None, name: str, config: Config) -> Path:
    """Make a run's directory and put the resolved configuration into it.

    Args:
        out: the directory to make; None for runs/<name>-<time>.

    Raises:
        UserError: when it holds something already, or cannot be made.
    """
    path = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        if out is None:
            number = 1
            while path.exists():
                number += 1
                path = path.with_name(f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{number}")
        elif path.is_dir() and any(path.iterdir()):
            raise UserError(f"--out: {path} is not empty; give a directory that does not exist yet")
        path.mkdir(parents=True, exist_ok=True)
        save_config(config, path / "config.yaml")
    except OSError as error:
        raise UserError(f"--out: cannot write to {path}: {error.strerror}; give a directory that can be made") from error
    return path


def discard_run_directory(directory: Path) -> None:
    """Remove what a refused run has written; a directory that something else keeps busy stays, empty."""
    shutil.rmtree(directory, ignore_errors=True)


def own_generators(device: torch.device) -> AbstractContextManager:
    """Leave the caller's random generators as they were."""
    return torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else [])


def run_sequentially(config: Config, name: str, out: Path | None = None, quiet: bool = False) -> tuple[dict, Path]:
    """`alrpc train`: the whole run in this process.

    Returns:
        The summary and the run's directory.

    Raises:
        UserError: for what the user can put right; nothing has been written when it is the configuration or the data.
    """
    started = time.time()
    config, _ = resolve(config)
    local_device(config.device)
    dataset = read_data(config.data)
    network = build_network(config, dataset.sample, dataset.target, dataset.word_vectors)
    directory = create_run_directory(out, name, config)
    with until_told_to_end(config.checkpoint.grace) as stopping:
        return train_in_directory(config, dataset, network, directory, quiet, started, stopping=stopping), directory


def resume_sequentially(directory: Path, overrides: Sequence[str], step: int | None, quiet: bool = False) -> tuple[dict, Path]:
    """`alrpc train --resume`: a run of either engine goes on in this process; as `run_sequentially`."""
    started = time.time()
    config, _, resume = read_resume(directory, overrides, step)
    local_device(config.device)
    dataset = read_data(config.data)
    network = build_network(config, dataset.sample, dataset.target)
    with until_told_to_end(config.checkpoint.grace) as stopping:
        summary = train_in_directory(config, dataset, network, directory, quiet, started, resume=resume, stopping=stopping)
    return summary, directory


@contextmanager
def until_told_to_end(grace: float) -> Iterator[Callable[[], bool]]:
    """Gives whether SIGTERM has come; a second one, or the end of the grace period, in seconds, raises Interrupted."""
    if threading.current_thread() is not threading.main_thread():  # which alone can have handlers
        yield lambda: False
        return
    told = threading.Event()

    def end(*_) -> None:
        raise Interrupted(signal.SIGTERM)

    def tell(*_) -> None:
        told.set()
        signal.signal(signal.SIGTERM, end)
        signal.setitimer(signal.ITIMER_REAL, grace)

    before = signal.signal(signal.SIGTERM, tell), signal.signal(signal.SIGALRM, end)
    try:
        yield told.is_set
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])


def train_in_directory(
    config: Config,
    dataset: Dataset,
    network: Network,
    directory: Path,
    quiet: bool,
    started: float,
    chosen: dict | None = None,
    resume: Resume | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict:
    """The sequential run of a resolved configuration, in a directory made for it; returns the summary.

    Args:
        chosen: what of the configuration was chosen by trying, for the record.
        resume: the checkpoint to go on from; None to begin.
        stopping: whether to take a checkpoint and end; asked after each micro-batch.

    Raises:
        Stopped: when it was told to end.
        UserError: for a loss that is not finite, or trained parameters that cannot be written.
    """
    device = local_device(config.device)
    torch.set_num_threads(config.threads)
    recipe = recipe_for(config, count_micro_batches(dataset.train, config.data.batch_size))
    check_data_is_the_same(resume, recipe)
    start = start_of(resume)
    numbers = list(range(1, len(network.components) + 1))
    described = describe_run(len(numbers), dataset.sample, dataset.target, recipe.micro_batches)
    due = due_at(config.checkpoint)
    appending = resume is not None
    with claimed(directory), recorded(config, directory, "sequential", 1, quiet, appending=appending) as (progress, report):
        if resume is not None:
            reopen(directory, config, resume.step)
        report({"event": "job", "dataset": dataset, "recipe": recipe, "start": start})
        report({"event": "ready", "stage": 1, "components": numbers, "device": str(device), "host": socket.gethostname()})
        if chosen:
            report({"event": "chosen", **chosen})
        report({"event": "start"})
        listen = committing(directory, 1, config.checkpoint.keep, lambda: described, report)
        with own_generators(device):
            learners = make_learners(network, recipe, device)
            if resume is not None:
                load_learners(resume.directory, learners, resume.files)

            def save(step: int, at_epochs_end: bool) -> bool:
                stop = stopping()
                if due(step) or stop or (at_epochs_end and (config.checkpoint.epoch or step == progress.steps)):
                    states = {component_file(learner.number): snapshot(learner) for learner in learners}
                    listen({"stage": 1, **write_files(directory, step, states)})
                return stop

            try:
                train_sequentially(
                    learners,
                    network,
                    dataset,
                    config.data.batch_size,
                    config.train.log_every,
                    report,
                    config.data.workers,
                    start,
                    save,
                )
            except NonFinite as error:
                raise NonFinite(f"{error}; {offer(directory)}") from error
        report({"event": "finished", "stage": 1, **describe_components(network.components, True, device)})
    if cause := progress.unwritten():
        raise UserError(f"{cause}; {offer(directory)}")
    return conclude(directory, progress, started)


def conclude(directory: Path, progress: Progress, started: float) -> dict:
    """Write and give the summary of a run whose last checkpoint is there; raises Stopped if it ended before its end."""
    if progress.epochs not in progress.evaluations:
        raise Stopped(f"ended by SIGTERM after step {progress.step} of {progress.steps}; {offer(directory)}")
    return write_summary(directory, progress, time.time() - started)


def run_coordinator(
    config: Config,
    components: int,
    directory: Path,
    quiet: bool,
    stdout: TextIO,
    started: float,
    resume: Resume | None = None,
    told_to_end: threading.Event | None = None,
) -> dict:
    """The coordinator's part of a pipeline's run, in rank 0, of a resolved configuration; returns the summary.

    Args:
        told_to_end: set when the run is to take a checkpoint and end.

    Raises:
        Stopped: when it was told to end, and has.
        StageFailed: naming the stage and the cause.
        UserError: for what the user can put right.
    """
    described: dict = {}

    def load() -> tuple[Dataset, Recipe, list[int] | None]:
        dataset = read_data(config.data)
        recipe = recipe_for(config, count_micro_batches(dataset.train, config.data.batch_size))
        check_data_is_the_same(resume, recipe)
        if resume is not None:
            reopen(directory, config, resume.step)
        described.update(describe_run(components, dataset.sample, dataset.target, recipe.micro_batches))
        return dataset, recipe, choose_split(config, dataset)

    stages = config.pipeline.stages
    appending = resume is not None
    told = told_to_end or threading.Event()
    leaving = threading.Event()

    def stopping() -> bool:
        return told.is_set() or (directory / STOP).exists()

    def spread(step: int, kept: list[int]) -> None:
        if not leaving.is_set():
            prune_on_every_host(stages, step, kept)

    with (
        claimed(directory),
        recorded(config, directory, "pipeline", stages, quiet, stdout, appending) as (progress, report),
        ThreadPoolExecutor(1, "commit") as disk,  # a slow one must not keep the coordinator from asking after the stages
    ):
        commit_when_written = committing(directory, stages, config.checkpoint.keep, lambda: described, report, spread)

        def listen(event: dict) -> None:
            if event["event"] in ("written", "unwritten"):
                disk.submit(commit_when_written, event)
            elif event["event"] == "told_to_end":
                told.set()
            else:
                if event["event"] == "coordinator":  # the last one: the stages are let go
                    leaving.set()
                report(event)

        coordinate(config, components, load, directory, listen, resume=resume, stopping=stopping)
    if cause := progress.unwritten():
        raise StageFailed(cause, again=False)
    return conclude(directory, progress, started)


def check_data_is_the_same(resume: Resume | None, recipe: Recipe) -> None:
    """Raises UserError when the data has another number of micro-batches than when the run began."""
    if resume is not None and resume.micro_batches != recipe.micro_batches:
        raise UserError(
            f"data: {recipe.micro_batches} micro-batches an epoch, but the run began with {resume.micro_batches}; "
            "give it the data that it began with"
        )


def committing(
    directory: Path,
    stages: int,
    keep: int,
    describe: Callable[[], dict],
    report: Report,
    spread: Callable[[int, list[int]], None] = lambda step, kept: None,
) -> Report:
    """A listener to what stages tell of their files: commits a checkpoint when all have written theirs; removes it if one could not.

    `spread` is told the step of each that was committed, and the steps that are kept.
    """
    told: dict[int, list[dict]] = {}

    def listen(event: dict) -> None:
        step = event["step"]
        told.setdefault(step, []).append(event)
        if len(told[step]) < stages:
            return
        events = told.pop(step)
        cause = next((event["cause"] for event in events if event["event"] == "unwritten"), None)
        if cause is None:
            files = {name: of_file for event in events for name, of_file in event["files"].items()}
            try:
                kept = commit(directory, step, describe(), files, keep)
            except OSError as error:
                cause = f"{error.filename or directory}: {error.strerror}"
        if cause is None:
            report({"event": "checkpoint", "step": step})
            spread(step, kept)
        else:
            remove(checkpoint_directory(directory, step))  # what is left of it takes the room of the next one
            report({"event": "unwritten", "step": step, "cause": cause})

    return listen


def train(
    network: Network, dataset: Dataset, *, batch_size: int = 64, device: str = "auto", report: Report | None = None, **fields
) -> list[float]:
    """Train a network in this process, in place.

    Args:
        batch_size: samples in a micro-batch.
        device: auto, cpu or cuda.
        report: called with every event (losses, evaluations, timings), a dict each.
        fields: of the configuration's section `train`: epochs, lr, optimizer, seed, …; see `alrpc.config.Train`.

    Returns:
        The last evaluation's score of each exit: accuracy, or mean squared error for a regression.

    Raises:
        UserError: for an unknown or impossible field, or a loss that is not finite.
    """
    settings = parse_section(Train, "train", fields)
    recipe = make_recipe(settings, count_micro_batches(dataset.train, batch_size))
    exits: list[float] = []

    def listen(event: dict) -> None:
        if event["event"] == "evaluation":
            exits[:] = event["exits"]
        if report is not None:
            report(event)

    where = local_device(device)
    with own_generators(where):
        train_sequentially(make_learners(network, recipe, where), network, dataset, batch_size, settings.log_every, listen)
    return exits


def load_run(directory: Path | str, model: str | None = None) -> Network:
    """The trained network of a run, from its directory.

    Args:
        model: needed when the run's blocks come from a function of one's own: its `package.module:function`. Code is
            imported on the caller's word, never on a file's.

    Raises:
        UserError: naming the file that is missing or does not fit.
    """
    directory = Path(directory)
    config = load_config(directory / "config.yaml")
    if ":" in config.model.name and config.model.name != model:
        raise UserError(
            f"{directory}: its blocks come from {config.model.name}; pass model={config.model.name!r} to import that"
        )
    checkpoint = find_checkpoint(directory)
    manifest = read_manifest(checkpoint)
    network = build_network(config, empty_sample(manifest), manifest["target"])
    for number, component in enumerate(network.components, 1):
        load_component(checkpoint, number, component, manifest["files"])
    return network.eval()
