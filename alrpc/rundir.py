"""A run's directory: the names of its files; making, locking and removing it; and atomic writes.

config.yaml                the resolved configuration
metrics.jsonl              one event a line (alrpc.events), appended during the run
timings.jsonl              the events that a timeline needs, likewise
checkpoints/step-N/        see alrpc.checkpoint
summary.json               written last: a run that has it is complete
logs/coordinator.log, stage-N.log, launcher.log
logs/reached               the last packet of each stage, for the message when the run dies
logs/restarts.jsonl        cause and step of each restart
logs/stop                  exists while the launcher requests a checkpoint and the end of the run
logs/torchrun              process id of the torchrun that started the run's processes
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

from alrpc.errors import UsageError, UserError

CONFIG, METRICS, TIMINGS, SUMMARY = "config.yaml", "metrics.jsonl", "timings.jsonl", "summary.json"
COMPARISON, QUALITY = "comparison.json", "quality.json"
STOP, RESTARTS, REACHED, BEGUN_BY = (Path("logs") / name for name in ("stop", "restarts.jsonl", "reached", "torchrun"))


def default_directory(name: str) -> Path:
    """The path runs/<name>-<time>, or the first of runs/<name>-<time>-2, … that does not exist yet."""
    first = path = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


def make_directory(out: Path | None, name: str) -> Path:
    """Make a directory for one run or for several.

    Args:
        out: the directory; None for the default directory of this name.

    Raises:
        UserError: when the directory is not empty, or cannot be made or written to.
    """
    path = out or default_directory(name)
    try:
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(f"--out: {path} is not empty; give a directory that does not exist yet")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {path}: {error.strerror}; give a directory that can be made") from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"--out: cannot write to {path}; give a directory that can be written to")
    return path


def discard_directory(path: Path) -> None:
    """Remove the directory of a refused run; files that cannot be removed are ignored."""
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lock_directory(run: Path) -> Iterator[None]:
    """Lock a run's directory for this process; the lock is released however the process ends.

    Raises:
        UserError: when another process trains in it.
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
    """Whether some process trains in a run's directory now."""
    try:
        with lock_directory(run):
            return False
    except UserError:
        return True


def log_path(run: Path, process: str) -> Path:
    """The path of a process' log; the process is `coordinator`, `stage-1` or `process-1`, for example."""
    return run / "logs" / f"{process}.log"


def write_atomically(path: Path, text: str, durable: bool = False) -> None:
    """Write a file so that either the old or the complete new content exists at any time.

    Args:
        durable: wait until the content is on the disk.

    Raises:
        OSError: when the file cannot be written; a partial file is removed.
    """
    with partial_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` if nothing is raised, and removed otherwise."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_json(path: Path, tree: Any, durable: bool = False) -> None:
    """Write a JSON file atomically; raises like `write_atomically`."""
    write_atomically(path, json.dumps(tree, indent=2) + "\n", durable)


def whole_lines(path: Path) -> list[dict]:
    """The objects of a JSON-lines file, without an incomplete last line; an empty list if the file does not exist."""
    trees = []
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            with suppress(ValueError):
                trees.append(json.loads(line))
    return trees


def read_restarts(run: Path) -> list[dict]:
    """The restarts that the launcher recorded, each with its cause, the step that it resumed from, and repeated_steps."""
    return whole_lines(run / RESTARTS)


def read_reached(run: Path) -> dict:
    """The last recorded position of a run: `step`, the number of steps that all stages have done, and `packets`, the last packet of
    each stage."""
    try:
        return json.loads((run / REACHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"step": 0, "packets": {}}
