"""Going on with a run from one of its checkpoints, with the bits that it would have had anyway."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alrpc.assembly import build_network, check_pipeline, resolve
from alrpc.checkpoint import (
    complete_checkpoints,
    empty_sample,
    find_checkpoint,
    load_component,
    read_file,
    read_manifest,
    remove,
    step_of,
)
from alrpc.config import Config, load_config, save_config
from alrpc.errors import UserError
from alrpc.observe.record import RESTARTS, read_reached
from alrpc.pipeline.mailbox import Resume

# What may change without another result. With more epochs the schedule of learning rates reckons with them from then on.
MAY_CHANGE = (
    *("train.epochs", "train.log_every", "pipeline", "checkpoint", "observe", "device"),
    *("data.root", "data.file", "data.test_file", "data.workers"),
)

STOP = Path("logs") / "stop"  # in a run's directory: the launcher asks for its end, after a checkpoint


def offer(run: Path) -> str:
    """The last complete checkpoint of a run that has ended before its end, for a message."""
    complete = complete_checkpoints(run)
    if not complete:
        return "there is no checkpoint of it"
    return f"its last complete checkpoint is that of step {step_of(complete[-1])}; --resume {run} goes on from it"


def read_resume(run: Path, overrides: Sequence[str], step: int | None) -> tuple[Config, int, Resume]:
    """Check that a run can go on from its last checkpoint, or that of a step; changes nothing.

    Returns:
        The resolved configuration, the number of components, and where to go on from.

    Raises:
        UserError: naming what is missing or damaged, and the checkpoint before it.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"--resume: {run} is not the directory of a run: it has no config.yaml")
    before, after = load_config(path), load_config(path, overrides)
    was, now = (dict(flat_fields(config.model_dump(mode="json"))) for config in (before, after))
    for name, value in code_of(before).items():
        if not any(override.startswith(f"{name}=") for override in overrides):
            raise UserError(f"--resume: the run's {name} is your own code; to have it imported, add --set {name}={value}")
    for name in [*now, *was]:
        allowed = any(name == field or name.startswith(f"{field}.") for field in MAY_CHANGE)
        if not allowed and was.get(name) != now.get(name):
            raise UserError(
                f"--set: {name} was {was.get(name)} and cannot become {now.get(name)}: the run would not be the same; "
                f"what may change is {', '.join(MAY_CHANGE)}"
            )
    with claimed(run):
        pass  # by nobody else
    config, components = resolve(after)
    check_pipeline(config, components)
    directory = find_checkpoint(run, step)
    try:
        manifest = read_manifest(directory)
        if manifest["components"] != components:
            raise UserError(f"{directory}: is of a network of {manifest['components']} components, this one has {components}")
        network = build_network(config, empty_sample(manifest), manifest["target"])
        for number, component in enumerate(network.components, 1):
            load_component(directory, number, component, manifest["files"])
    except UserError as error:
        older = [step_of(other) for other in complete_checkpoints(run) if other < directory]
        offer = f"; the checkpoint before it is that of step {older[-1]}: add --step {older[-1]}" if older else ""
        raise UserError(f"{error}{offer}") from error
    if manifest["step"] >= config.train.epochs * manifest["micro_batches"]:
        older = [step_of(other) for other in complete_checkpoints(run) if other < directory]
        if step is None and older and not (run / "summary.json").exists():  # it ended before it could tell the result
            return read_resume(run, overrides, older[-1])
        raise UserError(
            f"--resume: {run} has finished its {config.train.epochs} epochs; for more of them add --set train.epochs=N"
        )
    return config, components, Resume(directory, manifest["step"], manifest["micro_batches"], manifest["files"])


def check_resume_options(source: str | None, out: Path | None) -> None:
    """Raises UserError for an option that a run which goes on has no use for."""
    for option, given, reason in (("--config", source, "has its own configuration"), ("--out", out, "has its own directory")):
        if given is not None:
            raise UserError(f"{option}: a run that goes on {reason}; leave it out, or --resume")


def code_of(config: Config) -> dict[str, str]:
    """The fields that name code of the user's own. It is imported on the user's word, never on that of a file in a run."""
    names = {"model.name": config.model.name, "data.name": config.data.name}
    return {field: name for field, name in names.items() if ":" in name}


def last_whole_step(run: Path, epochs: int) -> int | None:
    """Steps that the last checkpoint holds that is complete and undamaged, before the end of so many epochs; None for none."""
    for directory in reversed(complete_checkpoints(run)):
        with suppress(UserError):
            manifest = read_manifest(directory)
            for name, told in manifest["files"].items():
                read_file(directory, name, told)
            if manifest["step"] < epochs * manifest["micro_batches"]:
                return manifest["step"]
    return None


def note_restart(run: Path, cause: str, step: int | None) -> None:
    """Add a line to what the summary says of restarts: why, from which step, and how many are repeated."""
    reached, step = read_reached(run)["step"], step or 0
    with (run / RESTARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"cause": cause, "step": step, "repeated_steps": max(0, reached - step)}) + "\n")


def flat_fields(tree: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration's fields as `section.field` and value."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat_fields(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def reopen(run: Path, config: Config, step: int) -> None:
    """Make a run that goes on look as one that has not ended; the last thing before it does go on.

    Checkpoints of later steps go: what they hold is about to happen again, perhaps otherwise.
    """
    for directory in complete_checkpoints(run):
        if step_of(directory) > step:
            remove(directory)
    partial = run / "config.yaml.partial"
    save_config(config, partial)
    partial.rename(run / "config.yaml")
    for name in ("summary.json", STOP):
        (run / name).unlink(missing_ok=True)


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Have a run's directory for this process alone, however it ends.

    Raises:
        UserError: when another training has it.
    """
    descriptor = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"{run}: a training is under way in it; wait for its end, or stop it") from error
    else:
        yield
    finally:
        os.close(descriptor)
