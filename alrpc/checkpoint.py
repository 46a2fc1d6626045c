"""Trained components on disk: one safetensors file each, and a manifest without which they do not count."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from alrpc.component import Classes, Target, Values
from alrpc.errors import UserError

FORMAT = 1
TARGETS = {"classes": Classes, "values": Values}


def checkpoint_directory(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def component_file(directory: Path, number: int) -> Path:
    return directory / f"component-{number:03d}.safetensors"


def save_component(directory: Path, number: int, component: nn.Module) -> None:
    """Write a component's parameters and buffers."""
    directory.mkdir(parents=True, exist_ok=True)
    save_model(component, str(component_file(directory, number)))


def load_component(directory: Path, number: int, component: nn.Module) -> None:
    """Read a component's parameters and buffers.

    Raises:
        UserError: naming the file that is missing, unreadable or of another network.
    """
    path = component_file(directory, number)
    try:
        load_model(component, path)
    except Exception as error:  # safetensors has its own errors beside OSError; load_state_dict raises RuntimeError
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: does not fit component {number} of this configuration: {reason}") from error


def write_manifest(directory: Path, components: int, sample: dict[str, Tensor], target: Target) -> None:
    """Declare a checkpoint complete, and say what a network must be built for to load it."""
    shapes = {name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in sample.items()}
    kind = {type(target).__name__.lower(): asdict(target)}
    manifest = {"format": FORMAT, "components": components, "sample": shapes, "target": kind}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def latest_checkpoint(run: Path) -> tuple[Path, dict]:
    """The last complete checkpoint of a run and its manifest.

    Raises:
        UserError: when there is none.
    """
    manifests = sorted(run.glob("checkpoints/step-*/manifest.json"))
    if not manifests:
        raise UserError(f"{run}: no complete checkpoint; give the directory of a run that has ended")
    manifest = json.loads(manifests[-1].read_text(encoding="utf-8"))
    ((kind, fields),) = manifest["target"].items()
    return manifests[-1].parent, {**manifest, "target": TARGETS[kind](**fields)}


def empty_sample(manifest: dict) -> dict[str, Tensor]:
    """Zeros of the shapes that the network was built for."""
    return {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in manifest["sample"].items()}
