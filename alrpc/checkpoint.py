"""Checkpoints on disk: a safetensors file for each component, and a manifest without which they do not count.

    checkpoints/step-00000120/component-001.safetensors    parameters, buffers, optimizer; written by the component's stage
                              …
                              manifest.json                committed by one rename when every file is there

Nothing is pickled. Random numbers, order of samples and learning rates are functions of the seed and the step, so there is no
state of theirs to keep.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from alrpc.component import Classes, Component, Target, Values
from alrpc.config import Checkpoint
from alrpc.errors import UserError
from alrpc.training.losses import NonFinite
from alrpc.training.update import Learner

FORMAT = 2
MANIFEST = "manifest.json"
TARGETS = {"classes": Classes, "values": Values}
AGES = {"newer": "a newer alrpc", "older": "the alrpc that it is from"}
Files = dict[str, dict]
"""name -> {"bytes": …, "sha256": …}"""


def due_at(settings: Checkpoint) -> Callable[[int], bool]:
    """Whether a checkpoint is due after a step, by steps or by time; to be asked after each."""
    last = time.monotonic()

    def due(step: int) -> bool:
        nonlocal last
        by_steps = settings.every is not None and step % settings.every == 0
        by_time = settings.seconds is not None and time.monotonic() - last >= settings.seconds
        if by_steps or by_time:
            last = time.monotonic()
        return by_steps or by_time

    return due


def checkpoint_directory(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def component_file(number: int) -> str:
    return f"component-{number:03d}.safetensors"


# ---- what a component's state is


def snapshot(learner: Learner) -> dict[str, Tensor]:
    """Copies, on the CPU, of all that a component's further training depends on."""
    state = dict(learner.component.state_dict())
    for index, kept in learner.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in kept.items() if isinstance(value, Tensor)}
    for name, parameter in learner.component.named_parameters():
        if parameter.grad is not None:  # in the middle of an accumulation
            state[f"gradient.{name}"] = parameter.grad
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What a snapshot has for the component, for its optimizer, and gradients."""
    parts: tuple[dict[str, Tensor], ...] = ({}, {}, {})
    for name, tensor in state.items():
        kind, _, rest = name.partition(".")
        place = ("optimizer", "gradient").index(kind) + 1 if kind in ("optimizer", "gradient") else 0
        parts[place][rest if place else name] = tensor
    return parts


def restore(learner: Learner, state: dict[str, Tensor]) -> None:
    """Put a snapshot back. Raises RuntimeError for another component's."""
    own, optimizer, gradients = split_state(state)
    learner.component.load_state_dict(own)
    kept: dict[int, dict[str, Tensor]] = {}
    for name, tensor in optimizer.items():
        index, key = name.split(".", 1)
        kept.setdefault(int(index), {})[key] = tensor
    learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": kept})
    for name, parameter in learner.component.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)


# ---- files


def write_files(run: Path, step: int, states: dict[str, dict[str, Tensor]]) -> dict:
    """Write snapshots by their files' names and wait until they are on the disk; gives the event to tell.

    Raises:
        NonFinite: for a state that is no use going on from; nothing has been written then.
    """
    for name, state in states.items():
        for part, tensor in state.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
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
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    except OSError as error:
        return {"event": "unwritten", "step": step, "cause": f"{error.filename or directory}: {error.strerror}"}
    return {"event": "written", "step": step, "files": files}


def read_file(directory: Path, name: str, told: dict) -> dict[str, Tensor]:
    """A snapshot, if it is what the manifest says.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    path = directory / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) != told["bytes"]:
        raise UserError(f"{path}: has {len(data):,} bytes, but {told['bytes']:,} were written")
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        raise UserError(f"{path}: is damaged: its checksum is not the manifest's")
    return load(data)


def load_component(directory: Path, number: int, component: Component, files: Files) -> None:
    """Read a component's parameters and buffers.

    Raises:
        UserError: naming the file that is missing, damaged or of another network.
    """
    own, _, _ = split_state(read_file(directory, component_file(number), files[component_file(number)]))
    with _fitting(directory, number):
        component.load_state_dict(own)


def load_learners(directory: Path, learners: Sequence[Learner], files: Files) -> None:
    """Put a checkpoint's state into every learner; raises as `load_component` does."""
    for learner in learners:
        name = component_file(learner.number)
        state = read_file(directory, name, files[name])
        with _fitting(directory, learner.number):
            restore(learner, state)


@contextmanager
def _fitting(directory: Path, number: int) -> Iterator[None]:
    """Says of what does not fit which file it is in."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        path = directory / component_file(number)
        raise UserError(f"{path}: does not fit component {number} of this configuration: {reason}") from error


# ---- manifests


def describe_run(components: int, sample: dict[str, Tensor], target: Target, micro_batches: int) -> dict:
    """For the manifest: what a network must be built for to load the components, and the micro-batches of an epoch."""
    shapes = {name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in sample.items()}
    kind = {type(target).__name__.lower(): asdict(target)}
    return {"components": components, "sample": shapes, "target": kind, "micro_batches": micro_batches}


def commit(run: Path, step: int, described: dict, files: Files, keep: int) -> list[int]:
    """Declare a checkpoint complete, and keep the latest `keep` of the complete ones; gives the steps of those that are kept."""
    directory = checkpoint_directory(run, step)
    manifest = {"format": FORMAT, "step": step, **described, "files": dict(sorted(files.items()))}
    directory.mkdir(parents=True, exist_ok=True)  # the stages may have written on other hosts
    partial = directory / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(directory / MANIFEST)
    kept = [step_of(complete) for complete in complete_checkpoints(run)[-keep:]]
    prune(run, step, kept)
    return kept


def prune(run: Path, step: int, kept: list[int]) -> None:
    """Remove what is on this host of checkpoints before a step, but for those that are kept."""
    for directory in run.glob("checkpoints/step-*"):
        if step_of(directory) < step and step_of(directory) not in kept:
            remove(directory)


def remove(directory: Path) -> None:
    """Remove a checkpoint, its manifest first, so that what is left of it does not count."""
    with suppress(OSError):
        (directory / MANIFEST).unlink()
    shutil.rmtree(directory, ignore_errors=True)


def complete_checkpoints(run: Path) -> list[Path]:
    """From the first to the last."""
    return sorted(manifest.parent for manifest in run.glob(f"checkpoints/step-*/{MANIFEST}"))


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """A complete checkpoint of a run: the last, or that of a step.

    Raises:
        UserError: when there is none.
    """
    complete = complete_checkpoints(run)
    if not complete:
        raise UserError(f"{run}: no complete checkpoint in it")
    directory = complete[-1] if step is None else checkpoint_directory(run, step)
    if directory not in complete:
        steps = ", ".join(str(step_of(each)) for each in complete)
        raise UserError(f"--step: {run} has no complete checkpoint of step {step}; it has {steps}")
    return directory


def read_manifest(directory: Path) -> dict:
    """What a complete checkpoint's manifest says.

    Raises:
        UserError: when it is damaged, or not of this format.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            age = "newer" if manifest["format"] > FORMAT else "older"
            raise UserError(f"{path}: format {manifest['format']} is {age} than this alrpc's, {FORMAT}; use {AGES[age]}")
        ((kind, fields),) = manifest["target"].items()
        return {**manifest, "target": TARGETS[kind](**fields)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged: {' '.join(str(error).split())}") from error


def empty_sample(manifest: dict) -> dict[str, Tensor]:
    """Zeros of the shapes that the network was built for."""
    return {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in manifest["sample"].items()}
