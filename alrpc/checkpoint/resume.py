"""Resuming a run from one of its checkpoints, bit for bit as if it had not been interrupted; and loading a trained network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alrpc import rundir
from alrpc.checkpoint.changes import changed_config, check_own_code, config_path
from alrpc.checkpoint.commit import best_checkpoint, complete_checkpoints, find_checkpoint, remove, trained_checkpoint
from alrpc.checkpoint.files import Files, read_file
from alrpc.checkpoint.manifest import Manifest, read_manifest, target_of
from alrpc.checkpoint.network import load_network
from alrpc.config import Config, load_config, save_config, user_code_fields
from alrpc.data.loader import EpochSize
from alrpc.errors import UsageError, UserError
from alrpc.network import Network, resolve
from alrpc.objectives.targets import Target
from alrpc.training.validation import has_stopped

Step = int | Literal["best", "last"] | None
"""Which checkpoint of a run is loaded."""


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint from which a run resumes."""

    directory: Path
    """The checkpoint's directory."""
    step: int
    """Number of steps that were done before the checkpoint."""
    micro_batches: int
    """Number of micro-batches in an epoch when the checkpoint was taken."""
    target: Target
    """What the run learns."""
    files: Files
    validation: Sequence[list[float]] = ()
    """The score of each exit on the validation split after every epoch before the checkpoint."""
    validation_samples: int = 0
    """Number of samples in the validation split; 0 without one."""
    samples: int | None = None
    """Number of samples in a pass over the training split, 0 for a stream; None where 0.1 took the checkpoint."""


def resume_hint(run: Path) -> str:
    """For a message: the last complete checkpoint of a run that has ended early, and how to resume from it."""
    complete = complete_checkpoints(run)
    if not complete:
        return "there is no checkpoint of it"
    return f"its last complete checkpoint is that of step {max(complete)}; --resume {run} goes on from it"


def load_resume_point(run: Path, overrides: Sequence[str], step: int | None) -> tuple[Config, int, ResumePoint]:
    """Check that a run whose directory is held can resume from its last checkpoint, or from that of a step; changes no file.

    Returns:
        The resolved configuration, the number of components, and the checkpoint to resume from.

    Raises:
        UserError: naming what is missing or damaged, and the previous checkpoint.
    """
    config, components = resolve(changed_config(run, overrides))
    return config, components, find_resume_point(run, config, step)


def find_resume_point(run: Path, config: Config, step: int | None = None, network: Network | None = None) -> ResumePoint:
    """The checkpoint to resume from; raises like `load_resume_point`.

    Args:
        network: the network that it has to fit, which stays as it is; None to build one as the configuration says.
    """
    directory = find_checkpoint(run, step)
    steps = list(complete_checkpoints(run))
    older = steps[: steps.index(step or steps[-1])]
    try:
        manifest = read_manifest(directory)
        load_network(config, directory, manifest, network, resumes=True)
    except UserError as error:
        hint = f"; the checkpoint before it is that of step {older[-1]}: add --step {older[-1]}" if older else ""
        raise UserError(f"{error}{hint}") from error
    end = config.train.epochs * manifest["micro_batches"]
    # A run that ended between its last checkpoint and its summary is evaluated again.
    if manifest["step"] > end or (manifest["step"] == end and (run / rundir.SUMMARY).exists()):
        unit = "epochs" if config.train.steps is None else "steps"
        raise UsageError(
            f"--resume: {run} has finished its {getattr(config.train, unit)} {unit}; for more of them add --set train.{unit}=N"
        )
    validation = manifest.get("validation", [])
    scores = [exits[-1] for exits in validation]
    if (run / rundir.SUMMARY).exists() and has_stopped(target_of(manifest).metric, scores, config.train.patience):
        raise UsageError(
            f"--resume: {run} has ended early, after epoch {len(validation)}, since train.patience is {config.train.patience}; to go on "
            "with it add --set train.patience=null, or a larger one"
        )
    return ResumePoint(
        directory,
        manifest["step"],
        manifest["micro_batches"],
        target_of(manifest),
        manifest["files"],
        validation,
        manifest.get("validation_samples", 0),
        manifest.get("samples"),
    )


def check_same_data(resume: ResumePoint | None, target: Target, size: EpochSize, validation_samples: int) -> None:
    """Refuse data with another target, or another number of micro-batches or of samples, than when the run began, with a UserError."""
    if resume is None:
        return
    for what, got, began_with in (
        ("micro-batches an epoch", size.micro_batches, resume.micro_batches),
        ("to train on", trained_on(size.of_pass), trained_on(size.of_pass if resume.samples is None else resume.samples)),
        ("samples to validate on", validation_samples, resume.validation_samples),
        ("as target", target, resume.target),
    ):
        if got != began_with:
            raise UserError(f"data: {got} {what}, but the run began with {began_with}; give it the data that it began with")


def trained_on(samples: int) -> str:
    """What a run trains on, for a message, by the number of samples in a pass."""
    return f"{samples} samples" if samples else "a stream"


def last_whole_step(run: Path, epochs: int) -> int | None:
    """The step of the last complete and undamaged checkpoint up to the end of all epochs; None if there is none."""
    for directory in reversed(complete_checkpoints(run).values()):
        with suppress(UserError):
            manifest = read_manifest(directory)
            for name, described in manifest["files"].items():
                read_file(directory, name, described)
            if manifest["step"] <= epochs * manifest["micro_batches"]:
                return manifest["step"]
    return None


def note_restart(run: Path, cause: str, step: int | None) -> None:
    """Record a restart for the summary: its cause, the step that it resumes from, and the number of repeated steps.

    What cannot be written is told in the terminal.
    """
    reached, step = rundir.read_reached(run)["step"], step or 0
    try:
        with rundir.open_lines(run / rundir.RESTARTS) as file:
            rundir.append_lines(file, [{"cause": cause, "step": step, "repeated_steps": max(0, reached - step)}])
    except OSError as error:
        print(f"alrpc: {run / rundir.RESTARTS} lacks this restart: {error.strerror}", file=sys.stderr, flush=True)


def reopen(run: Path, config: Config, step: int) -> None:
    """Clear the marks of a finished run before resuming it.

    Checkpoints of later steps are removed, since the run repeats these steps, possibly with other results.
    """
    for other, directory in complete_checkpoints(run).items():
        if other > step:
            remove(directory)
    save_config(config, run / rundir.CONFIG)
    for name in (rundir.SUMMARY, rundir.STOP):
        (run / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Trained:
    """A run's trained network, on the CPU and in evaluation mode, with the checkpoint that it was loaded from."""

    config: Config
    network: Network
    manifest: Manifest


def load_trained(
    directory: Path,
    model: str | None = None,
    objective: str | None = None,
    *,
    network: Network | None = None,
    step: Step = None,
) -> Trained:
    """Load what a run has learned, from one of its checkpoints.

    Args:
        model, objective: `package.module:function` of the user's own model or objective, if the run has one. Code is imported only
            when the caller names it, never because a file does.
        network: a network of the same blocks, for a run of `alrpc.train`, whose blocks only the caller can build; it is copied.
        step: the step of the checkpoint; `last`; `best`, by a validation split; None for the best if the run keeps it, else the last.

    Raises:
        UserError: naming a file that is missing or does not fit.
    """
    config = load_config(config_path(directory))
    if network is None:
        check_own_code(directory, config, {"model.name": model, "objective.name": objective})
    checkpoint = trained_checkpoint(directory, config) if step is None else _chosen_checkpoint(directory, step)
    manifest = read_manifest(checkpoint)
    return Trained(config, load_network(_to_predict(config), checkpoint, manifest, network).eval(), manifest)


def _to_predict(config: Config) -> Config:
    """The configuration without what is the user's own and only trains, such as a loss, so that nothing imports it."""
    own = [name.removeprefix("objective.") for name in user_code_fields(config) if name.startswith("objective.")]
    known = type(config.objective).model_fields  # an objective of one's own has fields of its own
    defaults = {name: known[name].default for name in own if name != "name" and name in known}
    return config.model_copy(update={"objective": config.objective.model_copy(update=defaults)})


def _chosen_checkpoint(run: Path, step: int | Literal["best", "last"]) -> Path:
    if step == "best":
        step = best_checkpoint(run)
        if step is None:
            raise UsageError(f"--step: got best, but {run} has no checkpoint with a score on a validation split; use last")
    return find_checkpoint(run, None if step == "last" else step)
