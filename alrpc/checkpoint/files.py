"""Files of a checkpoint: one safetensors file for each component. Nothing is pickled."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alrpc.checkpoint.state import State, check_state, restore, split_state
from alrpc.errors import UserError
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


def read_file(directory: Path, name: str, described: dict) -> State:
    """Read a snapshot and check it against the manifest's description, of which "sha256" may be missing.

    Raises:
        UserError: naming the file and its fault.
    """
    return parse_tensors(directory / name, read_described(directory / name, described))


def read_described(path: Path, described: dict) -> bytes:
    """Read a file and check it against the manifest's description; raises like `read_file`."""
    check_size(path, described)
    data = read_bytes(path, described["bytes"])
    if "sha256" in described and hashlib.sha256(data).hexdigest() != described["sha256"]:
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


def load_component(directory: Path, component: Component, files: Files, optimizer: str | None) -> None:
    """Load a component's parameters and buffers.

    Args:
        optimizer: the name of the optimizer whose state the file has, which is checked too; None to leave that aside.

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
