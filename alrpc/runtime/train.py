"""`alrpc.train`: the sequential engine, called from Python with a network and a data set of the caller's."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TypedDict, Unpack

from alrpc import rundir
from alrpc.checkpoint.changes import check_changes, resuming
from alrpc.checkpoint.resume import ResumePoint, find_resume_point
from alrpc.checkpoint.saver import InMemory
from alrpc.config import PYTHON, Config, check_config, load_config, parse_config
from alrpc.data import for_run
from alrpc.data.dataset import Dataset
from alrpc.errors import UsageError
from alrpc.events import Evaluation, Event
from alrpc.network import Network, check_rates
from alrpc.runtime.run import Run, new_run_directory, run_engine, train_until_sigterm
from alrpc.system import local_device

DATA, TOP = (
    ("batch_size", "workers", "validation"),
    ("device", "threads", "precision"),
)  # fields outside the configuration's section `train`


class Fields(TypedDict, total=False):
    """The fields of a configuration that `alrpc.train` takes; see `alrpc.config` for their meanings and default values."""

    batch_size: int
    workers: int
    validation: float
    device: Literal["auto", "cpu", "cuda"]
    threads: int
    precision: Literal["fp32", "bf16"]
    epochs: int
    steps: int | None
    evaluate_every: int | None
    patience: int | None
    seed: int
    optimizer: str
    lr: float
    target_lr: float | None
    group_lr: dict[str, float]
    end_lr: float | None
    schedule: str
    warmup: float
    weight_decay: float
    momentum: float
    nesterov: bool
    betas: list[float]
    clip_norm: float | None
    accumulate: int
    class_weights: list[float] | Literal["balanced"] | None
    nonfinite: Literal["stop", "skip"]
    metrics: list[str]
    log_every: int


def train(
    network: Network,
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    callbacks: Sequence[Callable[[Event], object]] = (),
    **fields: Unpack[Fields],
) -> list[float]:
    """Train a network in this process, in place, by the engine of the command `alrpc train`.

    Args:
        out: a directory for the run, in which the command's files are written: metrics, timings, a checkpoint after each epoch,
            the summary. It must not exist, or be empty. None to write nothing.
        resume: the directory of a run to go on with, from its last checkpoint, whose parameters replace the network's. Fields
            that are not given are the run's; those that would change its result are refused.
        callbacks: functions that are called with each event, such as `alrpc.events.Losses` and `alrpc.events.Evaluation`, by the
            thread that called this function. An exception that one raises ends the training.
        fields: `batch_size` (64), `workers` (0), `validation` (0.0), `device` ("auto"), `threads` (1), `precision` ("fp32"), and the
            fields of the configuration's section `train`: `epochs` (30), `lr` (1e-3), `seed`, …; see `alrpc.config.Train`.

    Returns:
        The score of each exit on the test split at the end: accuracy, or mean squared error for a regression. With a validation
        split (the data set's, or `validation`), it is that of the best epoch, whose parameters the network then has.

    Raises:
        UserError: for an unknown field or a value that is not allowed, data of another target than the network's, a directory or
            checkpoint that cannot be used, or a loss that is not finite.
        Stopped: when this process received SIGTERM and the run has taken a checkpoint; only with `out` or `resume`.
        Interrupted: when it received a second SIGTERM, or no checkpoint could be taken in time.
    """
    started = time.time()
    if out is not None and resume is not None:
        raise UsageError("out: a run that is resumed has its own directory; give one of the two")
    check_arguments(network, dataset, callbacks)
    exits: list[float] = []
    kept = InMemory()
    caller, events = threading.current_thread(), SimpleQueue[Event]()

    def tell(event: Event) -> None:
        kept.validation.hear(event)
        events.put(event)
        if threading.current_thread() is caller:  # checkpoints are committed in a thread of their own
            deliver()

    def deliver() -> None:
        while not events.empty():
            event = events.get()
            if isinstance(event, Evaluation) and event.split == "test":
                exits[:] = event.exits
            for callback in callbacks:
                callback(event)

    def train_in(directory: Path, point: ResumePoint | None = None) -> None:
        network.aim(parts.target)
        run = Run(config, len(network.components), directory, started, quiet=True, resume=point, tell=tell)
        train_until_sigterm(run, parts, network)

    if resume is not None:
        with resuming(Path(resume)):
            before = load_config(Path(resume) / rundir.CONFIG)
            config = with_fields(before.model_dump(), fields)
            check_changes(before, config)
            local_device(config.device)
            parts = for_run(dataset, config.data, config.train)
            train_in(Path(resume), find_resume_point(Path(resume), config, network=network))
    else:
        config = with_fields({"model": {"name": PYTHON}, "data": {"name": PYTHON}}, fields)
        check_config(config)
        check_rates(network, config.train)
        local_device(config.device)
        parts = for_run(dataset, config.data, config.train)
        if out is not None:
            with new_run_directory(Path(out), PYTHON, config) as directory:
                train_in(directory)
        else:
            network.aim(parts.target)
            run_engine(config, parts, network, tell, kept, kept.validation)
    deliver()
    return exits


def check_arguments(network: Network, dataset: Dataset, callbacks: Sequence[Callable[[Event], object]]) -> None:
    """Refuse, with a UsageError, what `train` cannot work with."""
    for argument, given, kind in (("network", network, Network), ("dataset", dataset, Dataset)):
        if not isinstance(given, kind):
            how = "; alrpc.as_dataset makes one" if kind is Dataset else ""
            raise UsageError(f"{argument}: got {type(given).__name__}; give an alrpc.{kind.__name__}{how}")
    if dataset.target != network.target:
        raise UsageError(f"dataset: its target is {dataset.target}, but the network was built for {network.target}")
    if callable(callbacks):
        raise UsageError("callbacks: got a function; give a list of functions")
    for callback in callbacks:
        if not callable(callback):
            raise UsageError(f"callbacks: got {callback!r}; give functions that take an event")


def with_fields(tree: dict[str, Any], fields: Fields) -> Config:
    """The configuration of nested dictionaries, with the fields given to `train` in their sections; unknown ones are in `train`."""
    tree = copy.deepcopy(tree)
    if "steps" in fields:  # in place of the run's epochs
        tree.get("train", {}).pop("epochs", None)
    for name, value in fields.items():
        section = tree if name in TOP else tree.setdefault("data" if name in DATA else "train", {})
        section[name] = value
    return parse_config(tree)
