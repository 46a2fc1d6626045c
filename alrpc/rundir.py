"""A run's directory: the names of its files; making, locking and removing it; and atomic writes.

config.yaml                the resolved configuration
metrics.jsonl              one event a line (alrpc.events), appended during the run
timings.jsonl              the events that a timeline needs, likewise
labels.json                the names of the classes, in the order of their indices; not for values
preprocess.json            how a raw example becomes the network's input (alrpc.data.preprocessing)
tokenizer.json             for texts: the tokenizer of Hugging Face's tokenizers, which also cleans the text
checkpoints/step-N/        see alrpc.checkpoint
export/                    what alrpc export has written, unless elsewhere
summary.json               written last: a run that has it is complete
calibration.json           by `alrpc calibrate`: temperatures of the exits, and when a sample leaves early (alrpc.inference.calibration)
logs/coordinator.log, stage-N.log, launcher.log
logs/reached               the last packet of each stage, for the message when the run dies
logs/restarts.jsonl        cause and step of each restart
logs/stop                  exists while the launcher requests a checkpoint and the end of the run
logs/agent/                files of the launcher's agent while it runs
logs/torchrun              the torchrun that started the run's processes: its process id and when it was started
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from alrpc.errors import UsageError, UserError
from alrpc.posix.utf8 import check_utf8
from alrpc.reading.documents import Count, describe, read_json, read_json_lines
from alrpc.reading.regular import MIB, Absent

CONFIG, METRICS, TIMINGS, SUMMARY = "config.yaml", "metrics.jsonl", "timings.jsonl", "summary.json"
LABELS, PREPROCESS, TOKENIZER = "labels.json", "preprocess.json", "tokenizer.json"
COMPARISON, QUALITY, CALIBRATION = "comparison.json", "quality.json", "calibration.json"
EXPORT = "export"
STOP, RESTARTS, REACHED, BEGUN_BY, AGENT = (
    Path("logs") / name for name in ("stop", "restarts.jsonl", "reached", "torchrun", "agent")
)


@contextmanager
def new_directory(out: Path | None, name: str) -> Iterator[Path]:
    """Make a directory for one run or for several, and hold its lock until the end of the context.

    Only its holder writes into the directory or removes something from it. A directory that this call has made and that is empty at
    the end of the context is removed.

    Args:
        out: the directory; it may exist if it is empty. None for runs/<name>-<time>, or the first of runs/<name>-<time>-2, …
            that does not exist yet.

    Raises:
        UserError: when the directory is not empty, another run has it, its path is not UTF-8, or it cannot be made or written to.
    """
    path = first = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    check_utf8(str(path), "--out")
    number = 1
    try:
        while path not in (made := make_directories(path)) and out is None:
            number += 1
            path = first.with_name(f"{first.name}-{number}")
        descriptor = _lock(path)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {path}: {error.strerror}; give a directory that can be made") from error
    try:
        if any(path.iterdir()):
            raise UsageError(f"--out: {path} is not empty; give a directory that does not exist yet")
        if not os.access(path, os.W_OK | os.X_OK):
            raise UsageError(f"--out: cannot write to {path}; give a directory that can be written to")
        yield path
    finally:
        with suppress(OSError):  # it is not empty
            for each in made:
                each.rmdir()
        os.close(descriptor)


def make_directories(path: Path) -> list[Path]:
    """Make a directory and its parents; returns those that did not exist, the innermost first."""
    made = []
    for each in (*reversed(path.parents), path):
        with suppress(FileExistsError):
            each.mkdir()
            made.insert(0, each)
    return made


def clear_directory(path: Path) -> None:
    """Remove what a refused run has written into the directory whose lock the caller holds; what cannot be removed stays."""
    for each in path.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        else:
            with suppress(OSError):
                each.unlink()


@contextmanager
def lock_directory(run: Path, joining: bool = False) -> Iterator[None]:
    """Lock a run's directory for a command, or for a process of the run; the lock is released however the process ends.

    A command holds it from its begin to its end. The processes that it starts join in it, so that the directory is not free before
    they have ended too, whatever becomes of the command. A file system without locks does not refuse anybody.

    Args:
        joining: whether the command that started this process may hold the lock too.

    Raises:
        UserError: when another command or its processes hold it.
        OSError: when the directory cannot be read.
    """
    descriptor = _lock(run, joining)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(run: Path, joining: bool = False) -> int:
    """Lock a directory; returns the descriptor that holds the lock, and raises like `lock_directory`."""
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Nobody else may hold it at first; from then on it is shared with the processes that join.
        for operation in (fcntl.LOCK_SH,) if joining else (fcntl.LOCK_EX, fcntl.LOCK_SH):
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), run.stat()):  # its holder has just removed it
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError) as error:
        os.close(descriptor)
        raise UserError(f"{run}: a training is under way in it; wait for its end, or stop it") from error
    except OSError:  # this file system has no locks
        pass
    return descriptor


def is_locked(run: Path) -> bool:
    """Whether some process trains in a run's directory now."""
    try:
        os.close(_lock(run))
    except UserError:
        return True
    return False


def last_run(option: str, *marks: str) -> Path:
    """The directory below ./runs in which a run was begun or resumed last.

    Args:
        option: the option or argument that was left out, for the message.
        marks: the directory has one of these files, which is written as a run begins.

    Raises:
        UsageError: when there is none.
    """
    times = {file.parent: file.stat().st_mtime for mark in marks for file in Path("runs").glob(f"*/{mark}")}
    if not times:
        raise UsageError(f"{option}: got no directory, and there is no run below {Path('runs').absolute()}; give that of a run")
    return max(times, key=times.__getitem__)


def run_name(run: Path) -> str:
    """The name of a run, that of its directory, as text for files and pages: bytes that are not UTF-8 are escaped."""
    return run.resolve().name.encode(errors="backslashreplace").decode()


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
    """Yield a temporary path to write to; it is renamed to `path` if nothing is raised, and removed otherwise.

    A link stays, and what it points to is replaced.

    Raises:
        UserError: for a device, a named pipe or a socket, which the rename would replace.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise UserError(f"{path}: cannot be written: it is no regular file; give one, or a name that is free")
    partial = target.with_name(f"{target.name}.partial")
    try:
        yield partial
        partial.rename(target)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # Python leaves it out where writing fails
        raise


def write_json(path: Path, tree: Any, durable: bool = False) -> None:
    """Write a JSON file atomically; raises like `write_atomically`."""
    write_atomically(path, json.dumps(tree, indent=2) + "\n", durable)


def open_lines(path: Path) -> FileIO:
    """Open a JSON-lines file to append to it, without a last line that a crash or a full disk has cut."""
    file = path.open("ab", buffering=0)
    file.truncate(path.read_bytes().rfind(b"\n") + 1)
    return file


def append_lines(file: FileIO, trees: Iterable[dict]) -> None:
    """Append objects to a file that `open_lines` has opened, each as a line: all of them, or none.

    Raises:
        OSError: when they cannot be written; what has been written of them is taken back.
    """
    data = "".join(json.dumps(tree) + "\n" for tree in trees).encode()
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        file.truncate(end)
        raise OSError(error.errno, error.strerror, file.name) from error


class Restart(TypedDict):
    """A restart that the launcher recorded."""

    cause: str
    step: Count
    """The step that the run resumed from; 0 for the beginning."""
    repeated_steps: Count


class Reached(TypedDict):
    """The last recorded position of a run."""

    step: Count
    """Number of steps that all stages have done."""
    packets: dict[str, str]
    """The last packet of each stage, by the stage's number."""


RESTART, REACHED_SO_FAR = TypeAdapter(Restart), TypeAdapter(Reached)


def read_restarts(run: Path) -> list[Restart]:
    """The restarts of a run; raises UserError for a file that is damaged."""
    path, restarts = run / RESTARTS, []
    try:
        for number, tree in read_json_lines(path, MIB):
            try:
                restarts.append(RESTART.validate_python(tree))
            except ValidationError as error:
                raise UserError(f"{path}:{number}: {describe(error)}") from error
    except Absent:
        pass
    return restarts


def read_reached(run: Path) -> Reached:
    """How far a run has come; step 0 when that is not known."""
    try:
        return read_json(run / REACHED, REACHED_SO_FAR, MIB)
    except UserError:
        return {"step": 0, "packets": {}}
