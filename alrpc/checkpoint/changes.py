"""What may change when a run is resumed. This module never imports torch, so that a wrong option is told at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alrpc import rundir
from alrpc.config import Config, flat_fields, load_config, user_code_fields
from alrpc.errors import UsageError

# Fields that may change without changing the result, except train.epochs, which the learning-rate schedule takes into account, and
# train.patience and checkpoint.best, which say when it ends and which epoch is tested.
MAY_CHANGE = (
    *("train.epochs", "train.patience", "train.metrics", "train.log_every", "pipeline", "checkpoint", "observe", "device"),
    *("data.root", "data.file", "data.test_file", "data.workers"),
)


@contextmanager
def resuming(run: Path) -> Iterator[None]:
    """Hold the directory of a run while it is resumed.

    Raises:
        UsageError: when it is not the directory of a run.
        UserError: when the run is under way.
    """
    config_path(run)
    with rundir.lock_directory(run):
        yield


def config_path(run: Path) -> Path:
    """The path of a run's configuration; raises UsageError when there is none."""
    path = run / rundir.CONFIG
    if not path.is_file():
        raise UsageError(f"--resume: {run} is not the directory of a run: it has no {rundir.CONFIG}")
    return path


def changed_config(run: Path, overrides: Sequence[str]) -> Config:
    """The configuration of the run in this directory, with overrides.

    Raises:
        UsageError: when it is not the directory of a run, or when an override would change the run's result.
    """
    path = config_path(run)
    before, after = load_config(path), load_config(path, overrides)
    for name, value in user_code_fields(before).items():
        if not any(override.startswith(f"{name}=") for override in overrides):
            raise UsageError(f"--resume: the run's {name} is your own code; to have it imported, add --set {name}={value}")
    check_changes(before, after)
    return after


def check_changes(before: Config, after: Config) -> None:
    """Refuse a change of a run's configuration that would change its result, with a UsageError."""
    was, now = (dict(flat_fields(config.model_dump(mode="json"))) for config in (before, after))
    for name in [*now, *was]:
        allowed = any(name == field or name.startswith(f"{field}.") for field in MAY_CHANGE)
        if not allowed and was.get(name) != now.get(name):
            raise UsageError(
                f"--set: {name} was {was.get(name)} and cannot become {now.get(name)}: the run would not be the same; "
                f"what may change is {', '.join(MAY_CHANGE)}"
            )


def check_resume_options(source: str | None, out: Path | None) -> None:
    """Refuse options that cannot be combined with --resume, with a UsageError."""
    for option, given, reason in (("--config", source, "has its own configuration"), ("--out", out, "has its own directory")):
        if given is not None:
            raise UsageError(f"{option}: a run that goes on {reason}; leave it out, or --resume")
