"""The lifetime of a run, the same for both engines: its directory, recorded events, checkpoints and summary.

read the data ─ lock the directory ─ record ─┬─ the sequential engine ─┬─ summary.json
                                             └─ the coordinator       ─┘
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

from alrpc import rundir
from alrpc.analysis.timeline import draw_run
from alrpc.checkpoint.carried import write_carried
from alrpc.checkpoint.changes import resuming
from alrpc.checkpoint.commit import Committer, best_checkpoint
from alrpc.checkpoint.files import load_trainers
from alrpc.checkpoint.manifest import describe_run
from alrpc.checkpoint.resume import ResumePoint, check_same_data, load_resume_point, reopen, resume_hint
from alrpc.checkpoint.saver import InMemory, Saver
from alrpc.config import Config, save_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset
from alrpc.data.loader import epoch_size, validation_samples
from alrpc.errors import Interrupted, NonFinite, StageFailed, Stopped
from alrpc.events import Chosen, Coordinator, Event, Job, Ready, Start, ToldToEnd, Unwritten, Written
from alrpc.models import check_weights, common_fields
from alrpc.network import Network, begin_network, build_network, resolve
from alrpc.pipeline.feeder import FeedStatus
from alrpc.pipeline.process import coordinate, prune_on_every_host
from alrpc.planning.partition import choose_split
from alrpc.runtime.signals import terminate_twice
from alrpc.system import local_device, own_arithmetic
from alrpc.telemetry.progress import Progress
from alrpc.telemetry.recorder import ignore, recorder, write_summary
from alrpc.timing import Timing
from alrpc.training.optimizer import make_recipe
from alrpc.training.packet import Packet
from alrpc.training.program import program
from alrpc.training.sequential import run_stream
from alrpc.training.stage import Stage
from alrpc.training.validation import Validation

Emit = Callable[[Event], None]


@dataclass(frozen=True)
class Run:
    """A run, new or resumed, in its directory."""

    config: Config
    """The resolved configuration."""
    components: int
    directory: Path
    started: float
    """When the command was started, on the system's clock."""
    quiet: bool = False
    """Whether to show nothing of the run."""
    verbose: bool = False
    """Whether to print a line for each event, in place of a live view."""
    resume: ResumePoint | None = None
    """The checkpoint to resume from; None for a new run."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the run must take a checkpoint and end."""
    tell: Emit = ignore
    """Called with each event after it has been recorded, from any thread."""

    @property
    def start(self) -> int:
        """Number of steps that were done before the run was started or resumed."""
        return self.resume.step if self.resume is not None else 0


@contextmanager
def lifetime(
    run: Run, engine: str, stages: int, stdout: TextIO | None = None
) -> Iterator[tuple[Emit, Callable, Progress, Validation]]:
    """Lock a run's directory, record its events and commit its checkpoints, while an engine runs in the context.

    Args:
        stages: number of processes that train.
        stdout: the terminal; None for standard output.

    Returns:
        A function for the run's events, a function for the data set, to be called as soon as it is read, the progress, and what
        is heard of the validation.

    Raises:
        UserError: when another process trains in the directory, or the data is not the one with which the run began.
        Exception: what has gone wrong in the commit of a checkpoint; the function for events raises it too.
    """
    described: dict = {}
    leaving = threading.Event()

    def take_data(dataset: Dataset) -> None:
        size = epoch_size(dataset, run.config.data.batch_size, run.config.train, throughout=True)
        to_validate = validation_samples(dataset) or 0
        check_same_data(run.resume, dataset.target, size, to_validate)
        carried = write_carried(run.directory, dataset, resuming=run.resume is not None)
        if run.resume is not None:
            reopen(run.directory, run.config, run.resume.step)
        described.update(describe_run(run.components, dataset.sample, dataset.target, size, to_validate, carried))

    def describe(step: int) -> dict:
        exits = validation.exits[: step // described["micro_batches"]]
        return {**described, **({"validation": exits} if exits else {})}

    def committed(step: int, kept: list[int]) -> None:
        if engine == "pipeline" and not leaving.is_set():
            prune_on_every_host(stages, step, kept)

    with (
        rundir.lock_directory(run.directory, joining=True),
        recorder(
            run.config,
            run.directory,
            engine,
            stages,
            run.quiet,
            stdout,
            run.verbose,
            appending=run.resume is not None,
            draw_timeline=draw_run,
        ) as (progress, record),
        in_thread("commit") as (submit, check),  # so that a slow disk delays neither training nor the coordinator
    ):

        def tell(event: Event) -> None:
            record(event)
            validation.hear(event)
            run.tell(event)

        settings = run.config.checkpoint
        known = run.resume.validation if run.resume is not None else ()
        progress.evaluations.update(enumerate(known, 1))
        validation = Validation(known, run.start, partial(best_checkpoint, run.directory), check)
        committer = Committer(run.directory, stages, settings.keep, settings.best, describe, tell, committed)

        def emit(event: Event) -> None:
            check()
            if isinstance(event, (Written, Unwritten)):
                submit(committer.receive, event)
            elif isinstance(event, ToldToEnd):
                run.stopping.set()
            else:
                if isinstance(event, Coordinator):  # the last event, after which the stages are dismissed
                    leaving.set()
                tell(event)

        yield emit, take_data, progress, validation


@contextmanager
def in_thread(name: str) -> Iterator[tuple[Callable[..., None], Callable[[], None]]]:
    """A thread that calls functions in order; their end is waited for.

    Returns:
        A function that has a function called with arguments, and one that raises the first exception that a function has raised;
        the end of the context raises it too.
    """
    raised: list[Exception] = []

    def submit(function: Callable, *arguments) -> None:
        thread.submit(call, function, *arguments)

    def call(function: Callable, *arguments) -> None:
        try:
            function(*arguments)
        except Exception as error:
            raised.append(error)

    def check() -> None:
        if raised:
            raise raised[0]

    with ThreadPoolExecutor(1, name) as thread:
        yield submit, check
    check()


def conclude(run: Run, progress: Progress) -> dict:
    """Write and return the summary of a run whose engine has ended.

    Raises:
        StageFailed: when the trained parameters could not be written.
        Stopped: when the run ended early.
    """
    if cause := progress.unwritten():
        raise StageFailed(cause, retryable=False)
    if progress.tested is None:
        hint = resume_hint(run.directory)
        raise Stopped(f"ended by SIGTERM after step {progress.step} of {progress.steps}; {hint}")
    return write_summary(run.directory, progress, run.started)


@contextmanager
def new_run_directory(out: Path | None, name: str, config: Config) -> Iterator[Path]:
    """Make a run's directory with the resolved configuration in it, and hold it; see `alrpc.rundir.new_directory`."""
    check_weights(common_fields(config.model).weights)
    with rundir.new_directory(out, name) as directory:
        save_config(config, directory / rundir.CONFIG)
        yield directory


# ---- the sequential engine


def run_sequentially(
    config: Config, name: str, out: Path | None = None, quiet: bool = False, verbose: bool = False
) -> tuple[dict, Path]:
    """`alrpc train`: run the sequential engine in this process.

    Returns:
        The summary and the run's directory.

    Raises:
        UserError: for errors that the user can correct; if the configuration or the data is wrong, nothing has been written.
        Stopped: when this process received SIGTERM and the run has taken a checkpoint.
    """
    started = time.time()
    config, components = resolve(config)
    local_device(config.device)
    dataset = read_data(config.data, config.train)
    network = begin_network(config, dataset.sample, dataset.target, dataset.word_vectors)
    with new_run_directory(out, name, config) as directory:
        return train_until_sigterm(Run(config, components, directory, started, quiet, verbose), dataset, network), directory


def resume_sequentially(
    directory: Path, overrides: Sequence[str], step: int | None, quiet: bool = False, verbose: bool = False
) -> tuple[dict, Path]:
    """`alrpc train --resume`: resume a run of either engine in this process; returns and raises like `run_sequentially`."""
    started = time.time()
    with resuming(directory):
        config, components, resume = load_resume_point(directory, overrides, step)
        local_device(config.device)
        dataset = read_data(config.data, config.train)
        network = build_network(config, dataset.sample, dataset.target)
        return train_until_sigterm(
            Run(config, components, directory, started, quiet, verbose, resume), dataset, network
        ), directory


def train_until_sigterm(run: Run, dataset: Dataset, network: Network) -> dict:
    """Like `train_in_directory`, but SIGTERM requests the end; a second one, or the end of the grace period, raises Interrupted."""
    with terminate_twice(run.config.checkpoint.grace, run.stopping.set, Interrupted(signal.SIGTERM)):
        return train_in_directory(run, dataset, network)


def train_in_directory(run: Run, dataset: Dataset, network: Network, chosen: dict | None = None) -> dict:
    """Run the sequential engine in a run's directory; returns the summary.

    Args:
        chosen: settings that were chosen by trial, to be recorded.

    Raises:
        Stopped: when the run was stopped early.
        UserError: for a loss that is not finite, or trained parameters that cannot be written.
    """
    try:
        with lifetime(run, "sequential", 1) as (emit, take_data, progress, validation):
            take_data(dataset)
            if chosen:
                emit(Chosen(chosen))
            saver = Saver(run.directory, 1, emit, validation.fail)
            run_engine(run.config, dataset, network, emit, saver, validation, run.resume, run.stopping.is_set)
        return conclude(run, progress)
    except (NonFinite, StageFailed) as error:
        raise type(error)(f"{error}; {resume_hint(run.directory)}") from error


def run_engine(
    config: Config,
    dataset: Dataset,
    network: Network,
    emit: Emit,
    saver: Saver | InMemory,
    validation: Validation,
    resume: ResumePoint | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """The sequential engine: train a network in this process, in place. Settings of torch are the caller's again at the end.

    Args:
        validation: hears the events that are emitted.
        stopping: returns whether to take a checkpoint and end.

    Raises:
        UserError: for a device that is missing, or a loss that is not finite.
    """
    device = local_device(config.device)
    size = epoch_size(dataset, config.data.batch_size, config.train, throughout=True)
    numbers = [component.number for component in network.components]
    start = resume.step if resume is not None else 0
    with own_arithmetic(device, config.threads):
        emit(Job(size.samples, size.micro_batches, start, None, len(dataset.test), validation_samples(dataset)))
        emit(Ready(1, numbers, str(device), socket.gethostname()))
        emit(Start())
        stage = Stage(
            1,
            network,
            numbers,
            make_recipe(config, size.micro_batches),
            device,
            log_every=config.train.log_every,
            send=None,
            emit=emit,
            save=saver.save,
            restore=saver.restore,
            timing=Timing(),
        )
        if resume is not None:
            load_trainers(resume.directory, stage.trainers, resume.files)
            stage.step = start
        run_stream(stage, program(config, dataset, stage.recipe, start, stopping, validation=validation))
        saver.wait()
        stage.finish()


# ---- the pipeline's coordinator


def run_coordinator(run: Run, stdout: TextIO) -> dict:
    """Run the coordinator of a pipeline, in rank 0; returns the summary.

    Raises:
        Stopped: when the run was stopped early.
        StageFailed: naming the stage and the cause.
        UserError: for errors that the user can correct.
    """
    config, stages, feed = run.config, run.config.pipeline.stages, FeedStatus()

    def stopping() -> bool:
        return run.stopping.is_set() or (run.directory / rundir.STOP).exists()

    def stream(dataset: Dataset) -> Iterator[Packet]:
        recipe = make_recipe(config, epoch_size(dataset, config.data.batch_size, config.train).micro_batches)
        return program(config, dataset, recipe, run.start, stopping, feed.watch, validation)

    with lifetime(run, "pipeline", stages, stdout) as (emit, take_data, progress, validation):

        def load() -> tuple[Dataset, list[int] | None]:
            dataset = read_data(config.data, config.train)
            if run.resume is None and common_fields(config.model).weights is not None:  # told before the stages begin
                begin_network(config, dataset.sample, dataset.target, dataset.word_vectors)
            take_data(dataset)
            return dataset, choose_split(config, dataset)

        coordinate(config, run.components, load, stream, run.directory, emit, run.resume, feed)
    return conclude(run, progress)
