"""Exports a run: a directory with its network in one of several forms, config.json and a model card, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.export import ExportedProgram

from alrpc import rundir
from alrpc.analysis.contents import CALIBRATION
from alrpc.checkpoint.manifest import empty_sample
from alrpc.data.preprocessing import TextPreprocessing
from alrpc.errors import UsageError, UserError, error_line
from alrpc.inference.calibration import read_calibration
from alrpc.inference.export.card import model_card
from alrpc.inference.export.check import expected, largest_difference, micro_batch, micro_batches
from alrpc.inference.export.description import describe
from alrpc.inference.export.graph import Exits, shapes_of, trace
from alrpc.inference.export.hub import HUB, MODULE
from alrpc.inference.export.onnx import answers_of_onnx, check_onnx, write_onnx
from alrpc.inference.export.plain import PARAMETERS, answers_of_plain, write_plain
from alrpc.inference.predictor import Predictor
from alrpc.posix.utf8 import check_utf8
from alrpc.reading.documents import read_json
from alrpc.reading.regular import Absent

Form = Literal["safetensors", "torch", "pt2", "onnx"]
CONFIG, CARD, PROGRAM, EXAMPLES = "config.json", "README.md", "model.pt2", "examples.safetensors"


@dataclass(frozen=True)
class Exported:
    """An export that has been written."""

    directory: Path
    described: Mapping[str, Any]
    """The contents of its config.json."""
    difference: float
    """The largest difference of its answers from the run's, as a share of the largest answer or of 1."""


def export(
    predictor: Predictor,
    form: Form,
    *,
    exit: int | Literal["all"] | None = None,
    out: Path | None = None,
    force: bool = False,
) -> Exported:
    """Export a run, and check what was written: it is loaded again, and its answers are held against the run's.

    Args:
        predictor: the run, on the CPU.
        exit: l for the prediction after l components; `all` for those of all exits, stacked; None for the full path.
        out: the directory to make; None for `export/FORM` in the run's.
        force: replace an export that is there already.

    Raises:
        UserError: for a directory that is there, a run that lacks what it must carry, or a network that cannot be exported.
    """
    if form == "onnx":
        check_onnx()
    number = None if exit == "all" else predictor.check_exit(exit)
    preprocessing, sample = predictor.carried.preprocessing, empty_sample(predictor.manifest)
    wanted = preprocessing.tensors
    shapes = [(name, wanted[name][0], (None, *wanted[name][1])) for name in sample]
    longest = preprocessing.max_tokens if isinstance(preprocessing, TextPreprocessing) else 1
    directory = out or predictor.directory / rundir.EXPORT / form
    with _whole_directory(directory, force, predictor.directory) as partial:
        exits, program = Exits(predictor, list(sample), number), None
        if form != "safetensors":
            free = [[place for place, size in enumerate(shape) if size is None] for _, _, shape in shapes]
            program = trace(exits, micro_batch(predictor, shapes, 2, longest), free)
            shapes = [(name, dtype, shape) for (name, dtype, _), shape in zip(shapes, shapes_of(program), strict=True)]
        described = describe(predictor, exits, shapes, number, form)
        files = {CONFIG: json.dumps(described, indent=2) + "\n", **_files_of_run(predictor)}
        for name, text in {**files, CARD: model_card(predictor, described, rundir.CALIBRATION in files)}.items():
            (partial / name).write_text(text, encoding="utf-8")
        batches = micro_batches(predictor, shapes, longest)
        right = expected(predictor, list(sample), number, batches)
        try:
            _write(form, partial, exits, program, files, described)
            save_file(_examples(described, batches[1], right[1]), partial / EXAMPLES)
        except (SafetensorError, RuntimeError) as error:  # of safetensors' and torch's writers, for a full disk
            raise UserError(f"{directory}: cannot be written: {error_line(error)}") from error
        for each in partial.iterdir():
            shutil.copymode(partial / CONFIG, each)  # safetensors lets nobody else read its files
        difference = largest_difference(_answers(form, partial, exits, batches), right)
    return Exported(directory, described, difference)


def _files_of_run(predictor: Predictor) -> dict[str, str]:
    """The run's tokenizer, and its calibration if it is that of the checkpoint."""
    files = {}
    if predictor.carried.tokenizer is not None:
        files[rundir.TOKENIZER] = predictor.carried.tokenizer
    path, step = predictor.directory / rundir.CALIBRATION, predictor.manifest["step"]
    with suppress(Absent):
        if read_json(path, CALIBRATION)["step"] == step:
            calibration = read_calibration(predictor.directory, predictor, step)
            files[rundir.CALIBRATION] = json.dumps(calibration, indent=2) + "\n"
    return files


def _write(
    form: Form,
    directory: Path,
    exits: Exits,
    program: ExportedProgram | None,
    files: Mapping[str, str],
    described: Mapping[str, Any],
) -> None:
    if form == "safetensors":
        tensors = {name: tensor.clone() for name, tensor in exits.state_dict().items()}
        save_file(tensors, directory / PARAMETERS)
    elif form == "torch":
        which = "All exits" if described["exit"] == "all" else f"Exit {described['exit']}"
        title = f"{which} of the run {described['run']} at step {described['step']}, as a plain module of PyTorch."
        write_plain(directory, program, exits.names, exits.gives, title)
        (directory / HUB).write_text(MODULE, encoding="utf-8")
    elif form == "pt2":
        torch.export.save(program, directory / PROGRAM, extra_files=dict(files))
    else:
        write_onnx(directory, program, exits.names, exits.gives, files)


def _examples(described: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """A micro-batch and what the run answers to it, by which an export can be checked wherever it is loaded."""
    kinds = {"inputs": inputs, "outputs": outputs}
    return {
        f"{kind}.{name}": tensor.contiguous().clone()
        for kind, tensors in kinds.items()
        for name, tensor in zip(described[kind], tensors, strict=True)
    }


@torch.no_grad()
def _answers(form: Form, directory: Path, exits: Exits, batches: Sequence[Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """What the files answer to micro-batches; the parameters alone are loaded into a network without any."""
    if form == "torch":
        return answers_of_plain(directory, batches)
    if form == "onnx":
        return answers_of_onnx(directory, batches)
    if form == "safetensors":
        for tensor in exits.parameters():
            tensor.fill_(torch.nan)
        exits.load_state_dict(load_file(directory / PARAMETERS))
        return [exits(*batch) for batch in batches]
    module = torch.export.load(directory / PROGRAM).module()
    return [module(*batch) for batch in batches]


@contextmanager
def _whole_directory(directory: Path, force: bool, run: Path) -> Iterator[Path]:
    """Yield a new directory beside `directory`, which it becomes if nothing is raised; it is removed otherwise.

    Raises:
        UsageError: when there is something already that is no export, or may not be replaced, nothing can be written, or the path is
            not UTF-8.
        UserError: when what is there cannot be replaced; it stays.
    """
    is_there, place = os.path.lexists(directory), directory.resolve()
    check_utf8(str(place), "--out")  # the writers of safetensors and torch take no other path
    for what, path in (("the run", run.resolve()), ("the current directory", Path.cwd())):
        if place in (path, *path.parents):
            told = f"is {what}" if place == path else f"has {what} within"
            raise UsageError(f"--out: {directory} {told}, and cannot be replaced; give another")
    if is_there and not (force and _is_export(directory)):
        hint = "add --force to replace it, or give another" if _is_export(directory) else "give one that is not there"
        raise UsageError(f"--out: {directory} exists; {hint}")
    partial, old = (place.with_name(f".{place.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        made = rundir.make_directories(partial)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {directory}: {error.strerror}; give a directory that can be made") from error
    try:
        yield partial
        try:
            _replace(place, partial, old)
        except OSError as error:
            raise UserError(f"--out: {directory} cannot be written: {error.strerror}; what was there stays") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # it is not empty
            for each in made[1:]:
                each.rmdir()
    shutil.rmtree(old, ignore_errors=True)


def _replace(place: Path, partial: Path, old: Path) -> None:
    """Rename `partial` to `place`, and what is there to `old`; if that fails or is interrupted, what was there is there again."""
    try:
        if place.exists():
            place.rename(old)
        partial.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise


def _is_export(directory: Path) -> bool:
    """Whether a directory is one that `export` has made."""
    return directory.is_dir() and not directory.is_symlink() and (directory / CONFIG).is_file() and (directory / CARD).is_file()
