"""What may change when a run is resumed. This module never imports torch, so that a wrong option is told at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from alrpc import rundir
from alrpc.config import Config, flat_fields, load_config, user_code_fields
from alrpc.errors import UsageError

RESUME = "--resume: "  # what the messages of a resume begin with
# Fields that may change without changing the result, except train.epochs and train.steps, which the learning-rate schedule takes
# into account, and train.patience and checkpoint.best, which say when it ends and which epoch is tested.
MAY_CHANGE = (
    *("train.epochs", "train.steps", "train.patience", "train.metrics", "train.log_every"),
    *("pipeline", "checkpoint", "observe", "device"),
    *("data.root", "data.file", "data.test_file", "data.workers"),
)


@contextmanager
def resuming(run: Path) -> Iterator[None]:
    """Hold the directory of a run while it is resumed.

    Raises:
        UsageError: when it is not the directory of a run.
        UserError: when the run is under way.
    """
    config_path(run, RESUME)
    with rundir.lock_directory(run):
        yield


def config_path(run: Path, before: str = "") -> Path:
    """The path of a run's configuration.

    Args:
        before: what the message begins with, such as an option.

    Raises:
        UsageError: when there is none.
    """
    path = run / rundir.CONFIG
    if not path.is_file():
        raise UsageError(f"{before}{run} is not the directory of a run: it has no {rundir.CONFIG}")
    return path


def check_overrides(overrides: Sequence[str], may_change: Collection[str], done: str) -> None:
    """Refuse, with a UsageError, overrides of other fields than may change in a run to which this is done, such as inspected."""
    for override in overrides:
        if override.partition("=")[0] not in may_change:
            raise UsageError(f"--set: got {override!r}; of a run that is {done} only {', '.join(may_change)} can change")


def check_own_code(run: Path, config: Config, named: Mapping[str, str | None]) -> None:
    """Refuse, with a UsageError, code of the user's own in these fields of a run's configuration that the caller has not named."""
    for field, name in user_code_fields(config).items():
        if field in named and named[field] != name:
            option = field.removesuffix(".name")
            raise UsageError(f"{run}: its {field} is your own code; pass {option}={name!r}, or --{option} {name}, to import it")


def changed_config(run: Path, overrides: Sequence[str]) -> Config:
    """The configuration of the run in this directory, with overrides.

    Raises:
        UsageError: when it is not the directory of a run, or when an override would change the run's result.
    """
    path = config_path(run, RESUME)
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
        if name == "train.steps":
            _check_steps(before, after)
        if not allowed and was.get(name) != now.get(name):
            raise UsageError(
                f"--set: {name} was {was.get(name)} and cannot become {now.get(name)}: the run would not be the same; "
                f"what may change is {', '.join(MAY_CHANGE)}"
            )


def _check_steps(before: Config, after: Config) -> None:
    """Refuse, with a UsageError, train.steps with which an epoch would have another number of steps than before."""
    was, now, every = before.train.steps, after.train.steps, before.train.evaluate_every
    if (was is None) != (now is None):
        units = ("epochs", "steps") if was is None else ("steps", "epochs")
        raise UsageError(f"--set: train.steps: the run is one by {units[0]} and cannot become one by {units[1]}")
    if now is not None and now < every:
        raise UsageError(f"--set: train.steps: got {now}, but the run is evaluated after every {every}; give at least as many")


def check_resume_options(source: str | None, out: Path | None) -> None:
    """Refuse options that cannot be combined with --resume, with a UsageError."""
    for option, given, reason in (("--config", source, "has its own configuration"), ("--out", out, "has its own directory")):
        if given is not None:
            raise UsageError(f"{option}: a run that goes on {reason}; leave it out, or --resume")
