"""Files of a checkpoint: one safetensors file for each component, written by the component's stage. Nothing is pickled."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save

from alrpc.checkpoint.state import State, check_state, restore, snapshot, split_state
from alrpc.errors import NonFinite, UserError
from alrpc.events import Event, Unwritten, Written
from alrpc.objectives.base import Component
from alrpc.reading.regular import open_regular, read_bytes
from alrpc.reading.tensors import parse_tensors
from alrpc.training.step import Trainer

Files = dict[str, dict]
"""name -> {"bytes": …, "sha256": …, "host": …}"""


CHECKPOINTS = "checkpoints"
CHECKPOINT = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
"""The name of a checkpoint's directory: its step, in eight digits or as many as it needs."""


def checkpoint_directory(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:08d}"


def checkpoints(run: Path) -> dict[int, Path]:
    """The directories of a run's checkpoints on this host, complete or not, by step in ascending order.

    Whatever else lies beside them, such as a copy under another name, a file or a link, is not the run's: it is neither read nor
    removed.
    """
    folder = run / CHECKPOINTS
    names = {each.name: each for each in folder.iterdir() if each.is_dir() and not each.is_symlink()} if folder.is_dir() else {}
    found = {int(match[1]): names[name] for name in names if (match := CHECKPOINT.fullmatch(name))}
    return dict(sorted(found.items()))


def component_file(number: int) -> str:
    return f"component-{number:03d}.safetensors"


class Saver:
    """Saves a stage's state: copies it at once, and writes the copy in a thread."""

    def __init__(self, run: Path, stage: int, emit: Callable[[Event], None]):
        self._run, self._stage, self._emit = run, stage, emit
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
        self._writing = self._thread.submit(lambda: self._emit(write_files(self._run, self._stage, step, states)))

    def wait(self) -> None:
        """Wait until all copies are written; raises like `save`."""
        if self._writing is not None:
            self._writing.result()


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


def read_file(directory: Path, name: str, described: dict) -> State:
    """Read a snapshot and check it against the manifest's description.

    Raises:
        UserError: naming the file and its fault.
    """
    return parse_tensors(directory / name, read_described(directory / name, described))


def read_described(path: Path, described: dict) -> bytes:
    """Read a file and check it against the manifest's description; raises like `read_file`."""
    check_size(path, described)
    data = read_bytes(path, described["bytes"])
    if hashlib.sha256(data).hexdigest() != described["sha256"]:
        raise UserError(f"{path}: is damaged: its checksum is not the manifest's")
    return data


def check_present(directory: Path, files: Files) -> None:
    """Check that this host has files of a checkpoint; the hosts of a run may have disks of their own.

    Raises:
        UserError: naming the files that are not here, and the hosts that wrote them.
    """
    here, missing = socket.gethostname(), {}
    for name, described in files.items():
        if not os.path.lexists(directory / name):
            missing.setdefault(described.get("host", here), []).append(name)
    places = [f"{', '.join(names)} (written on host {host})" for host, names in missing.items() if host != here]
    if places:
        raise UserError(
            f"{directory}: not on this host, {here}: {'; '.join(places)}; copy them from there, or share the run's directory"
        )


def check_size(path: Path, described: dict) -> None:
    """Compare a file's size with the manifest's; raises UserError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != described["bytes"]:
        raise UserError(f"{path}: has {size:,} bytes, but {described['bytes']:,} were written")


def load_component(directory: Path, component: Component, files: Files, optimizer: str) -> None:
    """Load a component's parameters and buffers.

    Args:
        optimizer: the name of the optimizer whose state the file has, which is checked too.

    Raises:
        UserError: naming a file that is missing, damaged or of another network.
    """
    name = component_file(component.number)
    state = read_file(directory, name, files[name])
    with _fitting(directory, component.number):
        check_state(component, optimizer, state)
        component.load_state_dict(split_state(state)[0])


def load_trainers(directory: Path, trainers: Sequence[Trainer], files: Files) -> None:
    """Load a checkpoint's state into every trainer; raises like `load_component`."""
    check_present(directory, {name: files[name] for name in (component_file(trainer.number) for trainer in trainers)})
    for trainer in trainers:
        name = component_file(trainer.number)
        state = read_file(directory, name, files[name])
        with _fitting(directory, trainer.number):
            restore(trainer, state)


@contextmanager
def _fitting(directory: Path, number: int) -> Iterator[None]:
    """Turn errors about a state that does not fit the component into a UserError that names the file."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        path = directory / component_file(number)
        raise UserError(f"{path}: does not fit component {number} of this configuration: {reason}") from error
