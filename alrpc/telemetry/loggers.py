"""Loggers: a run's scalars for TensorBoard, Weights & Biases, trackio and MLflow, each by a thread of its own, which no training waits for.

record ── scalars ──► queue ──► a thread for each logger: opens it, hands it the scalars, closes it
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from alrpc.config import Config, flat_fields
from alrpc.errors import UserError, error_line
from alrpc.events import Evaluation, Event, Losses, StageTimes
from alrpc.rundir import run_name
from alrpc.telemetry.bottleneck import share
from alrpc.telemetry.progress import Progress
from alrpc.timing import WAITING, WORKING

FOLDER = "tensorboard"  # in the run's directory
PROJECT = "alrpc"  # of runs whose project, or experiment, the environment does not name
MIB = 1 << 20
AT_ONCE = 100  # parameters that MLflow takes together, at most
OPENING = threading.Lock()  # held while standard output is another stream, which it is for the whole process
PATIENCE = 60.0  # seconds at a run's end that its loggers have for what they have not taken yet
DrawTimeline = Callable[[Path, Path], bool]
"""(run, PNG to write) -> whether the run has a timeline."""
Scalars = dict[str, float]
Log = Callable[[int, Scalars], object]
"""(step, scalars by name): what an open logger is called with."""


def scalars_of(event: Event, progress: Progress) -> tuple[int, Scalars]:
    """The number of micro-batches at which an event is plotted, and its scalars.

    They are for each component its losses and the scores of its exit; for each stage the shares of its time that it works and waits,
    and its peak memory in MiB; samples per second.
    """
    if isinstance(event, Losses):
        losses = event.losses.items()
        return event.step, {f"{name}_loss/component {event.component}": value for name, value in losses if value is not None}
    if isinstance(event, Evaluation):
        split = "" if event.split == "test" else f"{event.split}_"
        metrics = {event.metric: event.exits, **(event.metrics or {})}
        return event.epoch * progress.micro_batches, {
            f"{split}{name}/exit {number}": score for name, exits in metrics.items() for number, score in enumerate(exits, 1)
        }
    if isinstance(event, StageTimes):
        states = (("works", WORKING), *((state, (state,)) for state in WAITING))
        times = {f"{name}/stage {event.stage}": share(event.seconds, *of_name) for name, of_name in states}
        memory = {f"peak_memory_MiB/stage {event.stage}": event.peak_memory / MIB}
        return event.step, {**times, **memory, "samples_per_second": progress.rate()}
    return 0, {}


@contextmanager
def loggers(config: Config, directory: Path, progress: Progress, draw: DrawTimeline) -> Iterator[Callable[[Event], None]]:
    """Open the loggers of a run; yields the function to call with each event, which only puts its scalars into queues.

    What a logger raises, or that it does not end within a minute, is noted among the run's failures, and ends nothing.
    """
    opened = {name: OPEN[name](directory, config) for name in config.observe.loggers}
    if config.observe.tensorboard:
        opened["tensorboard"] = _tensorboard(directory, progress, draw)
    threads = [_Thread(name, logger, progress) for name, logger in opened.items()]

    def record(event: Event) -> None:
        step, scalars = scalars_of(event, progress)
        if scalars:
            for thread in filter(threading.Thread.is_alive, threads):
                thread.queue.put((step, scalars))

    try:
        yield record if threads else lambda event: None
    finally:
        deadline = time.monotonic() + PATIENCE
        for thread in threads:
            thread.queue.put(None)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                progress.note_failure(f"{thread.name} has not taken all that was logged within {PATIENCE:g} s")


class _Thread(threading.Thread):
    """Hands a logger what is in a queue, until there is None in it."""

    def __init__(self, name: str, logger: AbstractContextManager[Log], progress: Progress):
        super().__init__(name=name, daemon=True)  # one that hangs does not keep the process
        self.queue: SimpleQueue[tuple[int, Scalars] | None] = SimpleQueue()
        self._logger, self._progress = logger, progress
        self.start()

    def run(self) -> None:
        try:
            with self._logger as log:
                for step, scalars in iter(self.queue.get, None):
                    log(step, scalars)
        except (Exception, SystemExit) as error:  # of a library, of the network or of a disk: no reason to stop learning
            self._progress.note_failure(f"{self.name} takes no scalars: {error_line(error)}")


@contextmanager
def _tensorboard(directory: Path, progress: Progress, draw: DrawTimeline) -> Iterator[Log]:
    """Event files in the run's directory, at the end with a picture of its timeline."""
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory / FOLDER))

    def log(step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    try:
        yield log
        picture = directory / FOLDER / "timeline.png"
        if progress.ended is not None and draw(directory, picture):
            writer.add_image("timeline", imread(picture)[..., :3], progress.step, dataformats="HWC")
            picture.unlink()
    finally:
        writer.close()


@contextmanager
def _wandb(directory: Path, config: Config) -> Iterator[Log]:
    """Weights & Biases, in the project WANDB_PROJECT."""
    import wandb

    if wandb.setup().settings.mode in (None, "online") and not wandb.login(prompt=False):  # it would ask on the terminal
        raise UserError("not logged in; run wandb login, or set WANDB_MODE=offline")
    with _init(
        wandb,
        directory,
        config,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(directory),
        settings=wandb.Settings(silent=True, console="off"),
    ) as run:
        run.define_metric("*", step_metric="step")  # its own steps must not go back, which those of several stages do
        yield lambda step, scalars: run.log({"step": step, **scalars})


@contextmanager
def _trackio(directory: Path, config: Config) -> Iterator[Log]:
    """trackio, which has the API of Weights & Biases, in the project TRACKIO_PROJECT."""
    with _init(importlib.import_module("trackio"), directory, config, os.environ.get("TRACKIO_PROJECT", PROJECT)) as run:
        yield lambda step, scalars: run.log(scalars, step=step)


@contextmanager
def _init(package: Any, directory: Path, config: Config, project: str, **options: Any) -> Iterator[Any]:
    """A run of a package that has the API of Weights & Biases."""
    with OPENING, contextlib.redirect_stdout(sys.stderr):  # on which it prints where it logs to
        run = package.init(project=project, name=run_name(directory), config=_settings(config), **options)
    try:
        yield run
    finally:
        with OPENING, contextlib.redirect_stdout(sys.stderr):
            run.finish()


@contextmanager
def _mlflow(directory: Path, config: Config) -> Iterator[Log]:
    """MLflow, at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME."""
    import mlflow
    from mlflow.entities import Metric, Param

    if not mlflow.is_tracking_uri_set() and importlib.util.find_spec("sqlalchemy") is None:
        raise UserError(
            "MLFLOW_TRACKING_URI is not set; set it to the address of a server, or install sqlalchemy for a local store"
        )
    client = mlflow.MlflowClient()
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(project)
    experiment = known.experiment_id if known is not None else client.create_experiment(project)
    run = client.create_run(experiment, run_name=run_name(directory)).info.run_id
    params = [Param(name, str(value)[:500]) for name, value in _settings(config).items()]
    for first in range(0, len(params), AT_ONCE):
        client.log_batch(run, params=params[first : first + AT_ONCE])

    def log(step: int, scalars: Scalars) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run, [Metric(name, value, now, step) for name, value in scalars.items()])

    try:
        yield log
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)


def _settings(config: Config) -> Mapping[str, Any]:
    return dict(flat_fields(config.model_dump(mode="json")))


OPEN: dict[str, Callable[[Path, Config], AbstractContextManager[Log]]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}
"""The loggers of observe.loggers: each opens a run of its own when it is entered."""
