"""A run's lifetime, the same for both engines: its directory, its record, its checkpoints, its summary.

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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch

from alrpc import rundir
from alrpc.analysis.timeline import draw_run
from alrpc.checkpoint.commit import Committer, describe_run
from alrpc.checkpoint.files import Saver, load_trainers
from alrpc.checkpoint.resume import ResumePoint, check_same_data, load_resume_point, reopen, resume_hint
from alrpc.config import Config, Data, Train, parse_section, save_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset, count_micro_batches
from alrpc.errors import Interrupted, NonFinite, StageFailed, Stopped
from alrpc.events import Chosen, Coordinator, Evaluation, Event, Job, Ready, Start, ToldToEnd, Unwritten, Written, to_json
from alrpc.network import Network, build_network, resolve
from alrpc.pipeline.feeder import FeedStatus
from alrpc.pipeline.process import coordinate, prune_on_every_host
from alrpc.planning.partition import choose_split
from alrpc.runtime.signals import terminate_twice
from alrpc.system import local_device, use_deterministic_kernels
from alrpc.telemetry.progress import Progress
from alrpc.telemetry.recorder import recorder, write_summary
from alrpc.timing import Timing
from alrpc.training.optimizer import make_recipe
from alrpc.training.packet import Packet
from alrpc.training.program import program
from alrpc.training.sequential import run_stream
from alrpc.training.stage import Stage

Emit = Callable[[Event], None]


@dataclass(frozen=True)
class Run:
    """A run that begins, or goes on, in a directory made for it."""

    config: Config
    """Resolved."""
    components: int
    directory: Path
    started: float
    """When the command began, on the system's clock."""
    quiet: bool = False
    resume: ResumePoint | None = None
    """The checkpoint to go on from; None to begin."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the run is to take a checkpoint and end."""

    @property
    def start(self) -> int:
        """Steps that have been done when it begins."""
        return self.resume.step if self.resume is not None else 0


@contextmanager
def lifetime(run: Run, engine: str, stages: int, stdout: TextIO | None = None) -> Iterator[tuple[Emit, Callable, Progress]]:
    """Hold a run's directory, record its events and commit its checkpoints, while an engine runs inside.

    Args:
        stages: processes that train.
        stdout: the terminal; None for standard output.

    Returns:
        What takes the run's events; what takes the data set as soon as it is read; and the progress.

    Raises:
        UserError: when another training has the directory, or the data is not that which the run began with.
    """
    described: dict = {}
    leaving = threading.Event()

    def take_data(dataset: Dataset) -> None:
        micro_batches = count_micro_batches(dataset.train, run.config.data.batch_size)
        check_same_data(run.resume, micro_batches)
        if run.resume is not None:
            reopen(run.directory, run.config, run.resume.step)
        described.update(describe_run(run.components, dataset.sample, dataset.target, micro_batches))

    def committed(step: int, kept: list[int]) -> None:
        if engine == "pipeline" and not leaving.is_set():
            prune_on_every_host(stages, step, kept)

    with (
        rundir.lock_directory(run.directory),
        recorder(
            run.config,
            run.directory,
            engine,
            stages,
            run.quiet,
            stdout,
            appending=run.resume is not None,
            draw_timeline=draw_run,
        ) as (progress, record),
        ThreadPoolExecutor(1, "commit") as disk,  # a slow one must keep neither training nor the coordinator waiting
    ):
        committer = Committer(run.directory, stages, run.config.checkpoint.keep, lambda: described, record, committed)

        def emit(event: Event) -> None:
            if isinstance(event, (Written, Unwritten)):
                disk.submit(committer.receive, event)
            elif isinstance(event, ToldToEnd):
                run.stopping.set()
            else:
                if isinstance(event, Coordinator):  # the last one: the stages are let go
                    leaving.set()
                record(event)

        yield emit, take_data, progress


def conclude(run: Run, progress: Progress) -> dict:
    """Write and give the summary of a run whose engine has ended.

    Raises:
        StageFailed: when the trained parameters could not be written.
        Stopped: when it ended before its end.
    """
    if cause := progress.unwritten():
        raise StageFailed(cause, retryable=False)
    if progress.epochs not in progress.evaluations:
        hint = resume_hint(run.directory)
        raise Stopped(f"ended by SIGTERM after step {progress.step} of {progress.steps}; {hint}")
    return write_summary(run.directory, progress, time.time() - run.started)


def prepare_directory(out: Path | None, name: str, config: Config) -> Path:
    """Make a run's directory and put the resolved configuration into it; raises as `alrpc.rundir.make_directory`."""
    directory = rundir.make_directory(out, name)
    save_config(config, directory / rundir.CONFIG)
    return directory


# ---- the sequential engine


def run_sequentially(config: Config, name: str, out: Path | None = None, quiet: bool = False) -> tuple[dict, Path]:
    """`alrpc train`: the whole run in this process.

    Returns:
        The summary and the run's directory.

    Raises:
        UserError: for what the user can put right; nothing has been written when it is the configuration or the data.
        Stopped: when it was told to end, and has taken a checkpoint.
    """
    started = time.time()
    config, components = resolve(config)
    local_device(config.device)
    dataset = read_data(config.data)
    network = build_network(config, dataset.sample, dataset.target, dataset.word_vectors)
    run = Run(config, components, prepare_directory(out, name, config), started, quiet)
    return train_until_told(run, dataset, network), run.directory


def resume_sequentially(directory: Path, overrides: Sequence[str], step: int | None, quiet: bool = False) -> tuple[dict, Path]:
    """`alrpc train --resume`: a run of either engine goes on in this process; as `run_sequentially`."""
    started = time.time()
    config, components, resume = load_resume_point(directory, overrides, step)
    local_device(config.device)
    dataset = read_data(config.data)
    network = build_network(config, dataset.sample, dataset.target)
    return train_until_told(Run(config, components, directory, started, quiet, resume), dataset, network), directory


def train_until_told(run: Run, dataset: Dataset, network: Network) -> dict:
    """As `train_in_directory`, until SIGTERM asks for the end; a second one, or the end of the grace period, raises Interrupted."""
    with terminate_twice(run.config.checkpoint.grace, run.stopping.set, Interrupted(signal.SIGTERM)):
        return train_in_directory(run, dataset, network)


def train_in_directory(run: Run, dataset: Dataset, network: Network, chosen: dict | None = None) -> dict:
    """A sequential run; returns the summary.

    Args:
        chosen: what of the configuration was chosen by trying, for the record.

    Raises:
        Stopped: when it was told to end.
        UserError: for a loss that is not finite, or trained parameters that cannot be written.
    """
    config = run.config
    device = local_device(config.device)
    torch.set_num_threads(config.threads)
    use_deterministic_kernels(device)
    micro_batches = count_micro_batches(dataset.train, config.data.batch_size)
    numbers = list(range(1, run.components + 1))
    try:
        with lifetime(run, "sequential", 1) as (emit, take_data, progress), own_generators(device):
            take_data(dataset)
            emit(Job(len(dataset.train), micro_batches, run.start))
            emit(Ready(1, numbers, str(device), socket.gethostname()))
            if chosen:
                emit(Chosen(chosen))
            emit(Start())
            saver = Saver(run.directory, 1, emit)
            stage = Stage(
                1,
                network,
                numbers,
                make_recipe(config, micro_batches),
                device,
                log_every=config.train.log_every,
                send=None,
                emit=emit,
                save=saver.save,
                timing=Timing(),
            )
            if run.resume is not None:
                load_trainers(run.resume.directory, stage.trainers, run.resume.files)
                stage.step = run.start
            run_stream(stage, program(config, dataset, stage.recipe, run.start, run.stopping.is_set))
            saver.wait()
            stage.finish()
        return conclude(run, progress)
    except (NonFinite, StageFailed) as error:
        raise type(error)(f"{error}; {resume_hint(run.directory)}") from error


def own_generators(device: torch.device) -> AbstractContextManager:
    """Leave the caller's random generators as they were."""
    return torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else [])


# ---- the pipeline's coordinator


def run_coordinator(run: Run, stdout: TextIO) -> dict:
    """The coordinator's part of a pipeline's run, in rank 0; returns the summary.

    Raises:
        Stopped: when it was told to end, and has.
        StageFailed: naming the stage and the cause.
        UserError: for what the user can put right.
    """
    config, stages, feed = run.config, run.config.pipeline.stages, FeedStatus()

    def stopping() -> bool:
        return run.stopping.is_set() or (run.directory / rundir.STOP).exists()

    def stream(dataset: Dataset) -> Iterator[Packet]:
        recipe = make_recipe(config, count_micro_batches(dataset.train, config.data.batch_size))
        return program(config, dataset, recipe, run.start, stopping, feed.watch)

    with lifetime(run, "pipeline", stages, stdout) as (emit, take_data, progress):

        def load() -> tuple[Dataset, list[int] | None]:
            dataset = read_data(config.data)
            take_data(dataset)
            return dataset, choose_split(config, dataset)

        coordinate(config, run.components, load, stream, run.directory, emit, run.resume, feed)
    return conclude(run, progress)


# ---- from Python


def train(
    network: Network,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    device: str = "auto",
    report: Callable[[dict], None] | None = None,
    **fields,
) -> list[float]:
    """Train a network in this process, in place.

    Args:
        batch_size: samples in a micro-batch.
        device: auto, cpu or cuda.
        report: called with every event (losses, evaluations, timings), a dict each, as `alrpc.events.to_json` makes it.
        fields: of the configuration's section `train`: epochs, lr, optimizer, seed, …; see `alrpc.config.Train`.

    Returns:
        The last evaluation's score of each exit: accuracy, or mean squared error for a regression.

    Raises:
        UserError: for an unknown or impossible field, or a loss that is not finite.
    """
    config = Config(train=parse_section(Train, "train", fields), data=parse_section(Data, "data", {"batch_size": batch_size}))
    where = local_device(device)
    exits: list[float] = []

    def emit(event: Event) -> None:
        if isinstance(event, Evaluation):
            exits[:] = event.exits
        if report is not None:
            report(to_json(event))

    recipe = make_recipe(config, count_micro_batches(dataset.train, batch_size))
    numbers = [component.number for component in network.components]
    use_deterministic_kernels(where)
    with own_generators(where):
        stage = Stage(
            1,
            network,
            numbers,
            recipe,
            where,
            log_every=config.train.log_every,
            send=None,
            emit=emit,
            save=lambda step, trainers: None,  # what is trained is in the caller's hands
            timing=Timing(),
        )
        run_stream(stage, program(config, dataset, recipe))
        stage.emit_spans(last=True)
    return exits
