"""Savers of a stage's state: into the files of a checkpoint or, of a run without a directory, in memory."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from alrpc.checkpoint.files import checkpoint_directory, component_file, load_component
from alrpc.checkpoint.manifest import MANIFEST, read_manifest
from alrpc.checkpoint.state import State, snapshot
from alrpc.errors import NonFinite
from alrpc.events import Event, Unwritten, Written
from alrpc.training.step import Trainer
from alrpc.training.validation import Validation, best_epoch


class Saver:
    """Saves a stage's state: copies it at once, and writes the copy in a thread.

    Args:
        emit: receives, in that thread, what has become of each copy.
        failed: receives there the exception for which `emit` is never called, since who waits for the event must be told.
    """

    def __init__(self, run: Path, stage: int, emit: Callable[[Event], None], failed: Callable[[Exception], None]):
        self._run, self._stage, self._emit, self._failed = run, stage, emit, failed
        self._thread = ThreadPoolExecutor(1, "write-checkpoint")
        self._thread.submit(int).result()  # starts the thread now, before the stage is pinned to a core
        self._writing: Future | None = None

    def save(self, step: int, trainers: Sequence[Trainer]) -> None:
        """Copy all state, and write it in the thread; waits until the previous copy is written.

        Raises:
            NonFinite: when a value of the previous copy was not finite.
        """
        self.wait()
        states = {component_file(trainer.number): snapshot(trainer) for trainer in trainers}
        self._writing = self._thread.submit(self._write, step, states)

    def _write(self, step: int, states: dict[str, State]) -> None:
        try:
            self._emit(write_files(self._run, self._stage, step, states))
        except Exception as error:
            self._failed(error)
            raise

    def restore(self, step: int, trainers: Sequence[Trainer]) -> None:
        """Load the parameters and buffers, not the optimizers, of a checkpoint of the run, of which this host has the stage's files.

        Checksums are compared on the coordinator's host, which has the manifest.

        Raises:
            UserError: naming a file that is missing, damaged or of another network.
        """
        self.wait()
        directory = checkpoint_directory(self._run, step)
        paths = [directory / component_file(trainer.number) for trainer in trainers]
        files = {path.name: {"bytes": path.stat().st_size if path.is_file() else 0} for path in paths}
        if (directory / MANIFEST).is_file():
            files = read_manifest(directory)["files"]
        for trainer in trainers:
            load_component(directory, trainer.component, files, trainer.recipe.train.optimizer)

    def wait(self) -> None:
        """Wait until all copies are written; raises like `save`."""
        if self._writing is not None:
            self._writing.result()


class InMemory:
    """Keeps the parameters and buffers of the best epoch by a validation split; `validation` is to hear the run's events."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._states: list[dict[str, Tensor]] = []
        self.validation = Validation(step=math.inf, find_best=lambda: self._step)

    def save(self, step: int, trainers: Sequence[Trainer]) -> None:
        """Copy the state if the step ends the best epoch so far."""
        scores, target, micro_batches = (
            self.validation.scores,
            trainers[0].component.objective.target,
            trainers[0].recipe.micro_batches,
        )
        if scores and step == best_epoch(target.metric, scores) * micro_batches:
            self._step, self._states = step, [copy.deepcopy(trainer.component.state_dict()) for trainer in trainers]

    def restore(self, step: int, trainers: Sequence[Trainer]) -> None:
        """Give the components the state that was copied last, that of the step."""
        for trainer, state in zip(trainers, self._states, strict=True):
            trainer.component.load_state_dict(state)

    def wait(self) -> None:
        """Nothing is written meanwhile."""


def write_files(run: Path, stage: int, step: int, states: dict[str, State]) -> Written | Unwritten:
    """Write snapshots, given by the names of their files, and wait until they are on the disk.

    Raises:
        NonFinite: if any value of a component or its optimizer is not finite; no file has been written then.
    """
    for name, state in states.items():
        for part, tensor in state.items():
            of_training = not part.startswith("feedback.")  # with train.nonfinite=skip, what is heard need not be finite
            if of_training and tensor.is_floating_point() and not tensor.isfinite().all():
                raise NonFinite(f"{part} of {name.removesuffix('.safetensors')} is not finite after step {step}")
    directory, files = checkpoint_directory(run, step), {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, state in states.items():
            data = save(state)
            with (directory / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "host": socket.gethostname()}
    except OSError as error:
        return Unwritten(step, f"{error.filename or directory}: {error.strerror}", stage)
    return Written(stage, step, files)
