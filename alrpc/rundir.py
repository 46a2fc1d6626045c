"""A run's directory: its files by name, who makes, locks and removes it, and how files are written and read.

config.yaml                the resolved configuration
metrics.jsonl              an event a line (alrpc.events), while the run is under way
timings.jsonl              what a timeline needs, likewise
checkpoints/step-N/        alrpc.checkpoint
summary.json               last of all: a run that has it has ended well
logs/coordinator.log, stage-N.log, launcher.log
logs/reached               where the stages were last, for whoever finds the run dead
logs/restarts.jsonl        cause and step of each restart
logs/stop                  there while the launcher asks for a checkpoint and the end
logs/torchrun              the process that started those which train here
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from alrpc.errors import UserError

CONFIG, METRICS, TIMINGS, SUMMARY = "config.yaml", "metrics.jsonl", "timings.jsonl", "summary.json"
COMPARISON, QUALITY = "comparison.json", "quality.json"
STOP, RESTARTS, REACHED, BEGUN_BY = (Path("logs") / name for name in ("stop", "restarts.jsonl", "reached", "torchrun"))


def default_directory(name: str) -> Path:
    """runs/<name>-<time>, or the first of runs/<name>-<time>-2, … that does not exist yet."""
    first = path = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


def make_directory(out: Path | None, name: str) -> Path:
    """Make a directory for a run, or for several.

    Args:
        out: the directory; None for the default of this name.

    Raises:
        UserError: when it holds something already, or cannot be made or written to.
    """
    path = out or default_directory(name)
    try:
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f"--out: {path} is not empty; give a directory that does not exist yet")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot write to {path}: {error.strerror}; give a directory that can be made") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"--out: cannot write to {path}; give a directory that can be written to")
    return path


def discard_directory(path: Path) -> None:
    """Remove what a refused run has written; a directory that something else keeps busy stays, empty."""
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lock_directory(run: Path) -> Iterator[None]:
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


def is_locked(run: Path) -> bool:
    """Whether a training is under way in a run's directory."""
    try:
        with lock_directory(run):
            return False
    except UserError:
        return True


def log_path(run: Path, process: str) -> Path:
    """The log of a process, `coordinator`, `stage-1` or `process-1`."""
    return run / "logs" / f"{process}.log"


def write_atomically(path: Path, text: str, durable: bool = False) -> None:
    """Write a file so that there is the old one or the whole new one, whatever happens in between.

    Args:
        durable: wait until it is on the disk.

    Raises:
        OSError: when it cannot be written; what was half written is removed.
    """
    with partial_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Gives the path to write to; it becomes `path` by one rename if nothing is raised, and is removed otherwise."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_json(path: Path, tree: Any, durable: bool = False) -> None:
    """Write a JSON file atomically; raises as `write_atomically`."""
    write_atomically(path, json.dumps(tree, indent=2) + "\n", durable)


def whole_lines(path: Path) -> list[dict]:
    """The objects of a file of JSON lines, without a line that was cut off; none when there is no such file."""
    trees = []
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            with suppress(ValueError):
                trees.append(json.loads(line))
    return trees


def read_restarts(run: Path) -> list[dict]:
    """What the launcher noted of each restart: cause, step that the run was resumed from, repeated_steps."""
    return whole_lines(run / RESTARTS)


def read_reached(run: Path) -> dict:
    """Where a run was last: `step`, those that have passed through it, and `packets`, the last one of each stage."""
    try:
        return json.loads((run / REACHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"step": 0, "packets": {}}
