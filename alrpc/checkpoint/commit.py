"""Commit of checkpoints: one is complete once its manifest exists, which is written by one rename after every stage's files.

checkpoints/step-00000120/component-001.safetensors    parameters, buffers, optimizer; written by the component's stage
                          …
                          manifest.json                step, files with sizes and SHA-256, shapes of the sample, target
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from alrpc import rundir
from alrpc.checkpoint.files import Files, checkpoint_directory, checkpoints
from alrpc.checkpoint.manifest import FORMAT, MANIFEST, read_manifest, target_of
from alrpc.config import Config
from alrpc.errors import UsageError, UserError
from alrpc.events import Checkpoint, Event, Unwritten, Written
from alrpc.training.validation import best_epoch


class Committer:
    """Commits a checkpoint when all stages have written their files of it, or removes it if one of them could not.

    Args:
        best: whether to keep the checkpoint of the epoch with the best score on the validation split, beside the last `keep`.
        describe: receives the step of a checkpoint that is to be committed, and returns the result of `describe_run`.
        emit: receives `Checkpoint` or `Unwritten`.
        committed: receives the step of each committed checkpoint, and the steps of those that are kept.
    """

    def __init__(
        self,
        run: Path,
        stages: int,
        keep: int,
        best: bool,
        describe: Callable[[int], dict],
        emit: Callable[[Event], None],
        committed: Callable[[int, list[int]], None],
    ):
        self._run, self._stages, self._keep, self._best = run, stages, keep, best
        self._describe, self._emit, self._committed = describe, emit, committed
        self._events: dict[int, list[Written | Unwritten]] = {}

    def receive(self, event: Written | Unwritten) -> None:
        """Receive a stage's report on its files."""
        events = self._events.setdefault(event.step, [])
        events.append(event)
        if len(events) == self._stages:
            self._conclude(event.step, self._events.pop(event.step))

    def _conclude(self, step: int, events: list[Written | Unwritten]) -> None:
        cause = next((event.cause for event in events if isinstance(event, Unwritten)), None)
        if cause is None:
            files = {name: described for event in events for name, described in event.files.items()}
            try:
                kept = commit(self._run, step, self._describe(step), files, self._keep, self._best)
            except OSError as error:
                cause = f"{error.filename or self._run}: {error.strerror}"
        if cause is None:
            self._emit(Checkpoint(step))
            self._committed(step, kept)
        else:
            remove(checkpoint_directory(self._run, step))  # its files would occupy the disk space of the next checkpoint
            self._emit(Unwritten(step, cause))


def commit(run: Path, step: int, described: dict, files: Files, keep: int, best: bool = False) -> list[int]:
    """Commit a checkpoint, and remove all but the latest `keep` complete ones, and perhaps the best; returns the steps of those that
    are kept.

    Raises:
        OSError: when the manifest cannot be written.
    """
    directory = checkpoint_directory(run, step)
    manifest = {"format": FORMAT, "step": step, **described, "files": dict(sorted(files.items()))}
    directory.mkdir(parents=True, exist_ok=True)  # the stages may have written on other hosts
    rundir.write_json(directory / MANIFEST, manifest, durable=True)
    kept = list(complete_checkpoints(run))[-keep:]
    if best and (of_best := best_checkpoint(run)) is not None:
        kept = sorted({of_best, *kept})
    prune(run, step, kept)
    return kept


def prune(run: Path, step: int, kept: list[int]) -> None:
    """Remove this host's files of all checkpoints before a step, except of those that are kept."""
    for other, directory in checkpoints(run).items():
        if other < step and other not in kept:
            remove(directory)


def remove(directory: Path) -> None:
    """Remove a checkpoint, beginning with its manifest, so that a partly removed checkpoint is not complete."""
    if directory.is_symlink():  # to a directory of somebody else
        return
    with suppress(OSError):
        (directory / MANIFEST).unlink()
    shutil.rmtree(directory, ignore_errors=True)


def complete_checkpoints(run: Path) -> dict[int, Path]:
    """The directories of a run's complete checkpoints, by step in ascending order."""
    return {step: directory for step, directory in checkpoints(run).items() if (directory / MANIFEST).is_file()}


def best_checkpoint(run: Path) -> int | None:
    """The step of the complete checkpoint of the epoch with the best score on the validation split; None without such scores.

    Raises:
        UserError: when the manifest of the last checkpoint is damaged.
    """
    complete = complete_checkpoints(run)
    manifest = read_manifest(complete[max(complete)]) if complete else {}
    scores = {
        epoch * manifest["micro_batches"]: exits[-1]
        for epoch, exits in enumerate(manifest.get("validation", ()), 1)
        if epoch * manifest["micro_batches"] in complete
    }
    if not scores:
        return None
    return list(scores)[best_epoch(target_of(manifest).metric, list(scores.values())) - 1]


def trained_checkpoint(run: Path, config: Config) -> Path:
    """The directory of the checkpoint that has what a run has learned: that of the best epoch if it is kept, else the last one.

    Raises:
        UserError: when there is none.
    """
    return find_checkpoint(run, best_checkpoint(run) if config.checkpoint.best else None)


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """The directory of a run's last complete checkpoint, or of that of a step.

    Raises:
        UserError: when there is no such checkpoint.
    """
    complete = complete_checkpoints(run)
    if not complete:
        raise UserError(f"{run}: no complete checkpoint in it")
    step = max(complete) if step is None else step
    if step not in complete:
        raise UsageError(f"--step: {run} has no complete checkpoint of step {step}; it has {', '.join(map(str, complete))}")
    return complete[step]
