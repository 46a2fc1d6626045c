"""A checkpoint's manifest: what its files are, and the sample and target for which its network was built."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from alrpc.checkpoint.files import Files, checkpoint_directory, component_file
from alrpc.data.loader import EpochSize
from alrpc.errors import UserError
from alrpc.objectives.targets import Classes, Labels, Target, Values
from alrpc.reading.documents import Count, Name, Score, Whole, read_json, shown
from alrpc.reading.regular import MIB

FORMAT = 2
MANIFEST = "manifest.json"
AGES = {"newer": "a newer alrpc", "older": "the alrpc that it is from"}
TARGETS = {kind.kind: kind for kind in (Classes, Labels, Values)}
LARGEST = 1 << 26  # most numbers in a tensor of the sample; and most classes, labels or values
OTHERS = ConfigDict(extra="allow")


def _check_dtype(name: str) -> str:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or dtype.itemsize == 0 or name.startswith(("q", "bits")):
        raise ValueError("it must be a type of torch's tensors, such as float32")
    return name


def _check_shape(shape: list[int]) -> list[int]:
    if math.prod(shape) > LARGEST:
        raise ValueError(f"a sample has {LARGEST:,} numbers at most")
    return shape


Shape = Annotated[list[Annotated[int, Field(ge=0, le=LARGEST)]], Field(max_length=16), AfterValidator(_check_shape)]
TensorName = Annotated[str, Field(pattern=r"^[^\p{C}]{1,200}$")]
Size = Annotated[int, Field(ge=1, le=LARGEST)]


class Described(TypedDict):
    """A file of a checkpoint as it was written."""

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    host: NotRequired[Name]
    """The host on whose disk it was written; not given by 0.1."""


class Head(TypedDict):
    """What the manifest of every format has."""

    __pydantic_config__ = OTHERS

    format: Whole


class Manifest(Head):
    """The contents of manifest.json."""

    step: Count
    components: Annotated[int, Field(ge=1, le=10_000)]
    micro_batches: Annotated[Count, Field(ge=1)]
    """Number of micro-batches in an epoch."""
    samples: NotRequired[Count]
    """Number of samples in a pass over the training split, 0 for a stream; not given by 0.1."""
    sample: Annotated[dict[TensorName, tuple[Annotated[str, AfterValidator(_check_dtype)], Shape]], Field(min_length=1)]
    """Type and shape of each tensor of a sample."""
    target: Annotated[dict[Literal["classes", "labels", "values"], dict[str, Size]], Field(min_length=1, max_length=1)]
    """The kind of target and its fields."""
    validation: NotRequired[list[Annotated[list[Score], Field(min_length=1, max_length=10_000)]]]
    """With a validation split: the score of each exit on it, after every epoch so far."""
    validation_samples: NotRequired[Count]
    """The number of samples in the validation split, 0 without one; not given by 0.1."""
    files: dict[Annotated[str, Field(pattern=r"^component-\d{3,5}\.safetensors$")], Described]
    carried: NotRequired[dict[Literal["labels.json", "preprocess.json", "tokenizer.json"], Described]]
    """Files in the run's directory that a prediction needs; not given by 0.1."""


def _check_manifest(manifest: Manifest) -> Manifest:
    for number in range(1, manifest["components"] + 1):
        if component_file(number) not in manifest["files"]:
            raise ValueError(f"files: {component_file(number)} is not given, but needed")
    target_of(manifest)
    return manifest


HEAD, CONTENTS = TypeAdapter(Head), TypeAdapter(Annotated[Manifest, AfterValidator(_check_manifest)])


def describe_run(
    components: int,
    sample: dict[str, Tensor],
    target: Target,
    size: EpochSize,
    validation_samples: int,
    carried: Files,
) -> dict[str, Any]:
    """The manifest's description of a run: what is needed to build its network and to predict by it, the number of micro-batches
    in an epoch, and of samples to train on and to validate on."""
    shapes = {name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in sample.items()}
    kind = {target.kind: {each.name: getattr(target, each.name) for each in fields(target) if each.compare}}
    return {
        "components": components,
        "sample": shapes,
        "target": kind,
        "micro_batches": size.micro_batches,
        "samples": size.of_pass,
        "validation_samples": validation_samples,
        "carried": carried,
    }


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a complete checkpoint.

    Raises:
        UserError: when the manifest is damaged or has another format.
    """
    path = directory / MANIFEST
    found = read_json(path, HEAD, MIB)["format"]
    if found != FORMAT:
        age = "newer" if found > FORMAT else "older"
        raise UserError(f"{path}: format {found} is {age} than this alrpc's, {FORMAT}; use {AGES[age]}")
    manifest = read_json(path, CONTENTS, MIB)
    if directory.name != checkpoint_directory(Path(), manifest["step"]).name:
        raise UserError(f"{path}: step: got {manifest['step']}, but its directory is {directory.name}")
    return manifest


def empty_sample(manifest: Manifest) -> dict[str, Tensor]:
    """A sample of zeros with the names, types and shapes for which the network was built."""
    return {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in manifest["sample"].items()}


def target_of(manifest: Manifest) -> Target:
    """The kind of labels for which the network was built; raises ValueError for unknown fields."""
    ((kind, fields),) = manifest["target"].items()
    try:
        return TARGETS[kind](**fields)
    except TypeError as error:
        raise ValueError(f"target: got {shown(fields)}; it must have the fields of {kind}") from error
