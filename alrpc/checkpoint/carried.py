"""What a run carries so that others can predict with it: the names of its classes, the preprocessing of its inputs, its tokenizer.

The files lie in the run's directory, written as the run begins; the manifest of every checkpoint has their sizes and sums.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from alrpc import rundir
from alrpc.checkpoint.files import Files, read_described
from alrpc.checkpoint.manifest import Manifest, empty_sample, target_of
from alrpc.config import Config
from alrpc.data import preprocessing_of
from alrpc.data.catalog import TEXT
from alrpc.data.dataset import Dataset
from alrpc.data.preprocessing import (
    PREPROCESSING,
    ArrayPreprocessing,
    Preprocessing,
    TextPreprocessing,
    check_fits,
    parse_tokenizer,
)
from alrpc.errors import UsageError, UserError
from alrpc.reading.documents import describe
from alrpc.reading.regular import MIB, read_bytes, read_text

LARGEST = 256 * MIB  # bytes of the largest tokenizer, or of the names of classes
NAMES = TypeAdapter(Annotated[list[str], Field(min_length=1)])


@dataclass(frozen=True)
class Carried:
    """What a run knows of its inputs and its classes."""

    classes: list[str] | None
    """The name of each class, or of each label, in the order of their indices; None for values."""
    preprocessing: Preprocessing

    @property
    def tokenizer(self) -> str | None:
        """The JSON of the tokenizer; None unless the network takes texts."""
        return self.preprocessing.tokenizer if isinstance(self.preprocessing, TextPreprocessing) else None


def write_carried(run: Path, dataset: Dataset, resuming: bool = False) -> Files:
    """Write the files into the run's directory; in a resume only those that are not there, as in a run of 0.1.

    Returns:
        Their descriptions, for the manifest.

    Raises:
        UserError: when the data set's preprocessing does not make its samples, or, in a resume, is not that of the file.
        OSError: when they cannot be written.
    """
    contents, files = _contents(dataset), {}
    if dataset.preprocessing is not None:
        check_fits(dataset.preprocessing, dataset.sample)
    kept = {name for name in contents if resuming and os.path.lexists(run / name)}
    for name in kept:  # the manifests of older checkpoints have their sums
        if read_bytes(run / name, LARGEST) != contents[name].encode():
            raise UserError(
                f"{run / name}: is not what the data give; restore the file, or give the run the data that it began with"
            )
    for name, text in contents.items():
        data = text.encode()
        if name not in kept:
            rundir.write_atomically(run / name, text, durable=True)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return files


def _contents(dataset: Dataset) -> dict[str, str]:
    tree = asdict(dataset.preprocessed_by)
    _validate("preprocessing", tree)
    tokenizer = tree.pop("tokenizer", None)
    named = {rundir.LABELS: dataset.class_names, rundir.PREPROCESS: tree}
    files = {name: _to_json(content) for name, content in named.items() if content}
    return files if tokenizer is None else {**files, rundir.TOKENIZER: tokenizer}


def _to_json(content: Any) -> str:
    """JSON in UTF-8, where a byte of a folder's name that is not UTF-8, a lone surrogate in Python, is escaped."""
    return json.dumps(content, ensure_ascii=False, indent=2).encode(errors="backslashreplace").decode() + "\n"


def read_carried(
    run: Path, config: Config, manifest: Manifest, labels: Path | None = None, tokenizer: Path | None = None
) -> Carried:
    """Read what a run carries, checked against its checkpoint's manifest.

    Args:
        labels: a file of names of classes, to be taken instead of the run's: a name a line, or, if it ends in .json, a list.
        tokenizer: a tokenizer.json, likewise.

    Raises:
        UsageError: for a run of 0.1, naming which of the two it lacks.
        UserError: naming a file that is missing, damaged or does not fit the run.
    """
    described, target = manifest.get("carried"), target_of(manifest)
    given = {rundir.LABELS: labels, rundir.TOKENIZER: tokenizer}
    if described is None:
        needed = {"--labels": rundir.LABELS} if target.named else {}
        needed |= {"--tokenizer": rundir.TOKENIZER} if config.data.name in TEXT else {}
        if lacking := {option: name for option, name in needed.items() if given[name] is None}:
            raise UsageError(
                f"{next(iter(lacking))}: not given, but {run} was trained before runs had {' and '.join(lacking.values())}; "
                f"give {' and '.join(f'{option} FILE' for option in lacking)}"
            )
    texts = {
        name: read_described(run / name, file).decode(errors="replace")
        for name, file in (described or {}).items()
        if given.get(name) is None
    }
    of_run = texts.get(rundir.TOKENIZER)
    if tokenizer is not None:
        of_run = read_text(tokenizer, LARGEST)
        _check_tokenizer(tokenizer, of_run, config)
    if described is not None:
        preprocessing = _parse_preprocessing(run / rundir.PREPROCESS, texts.get(rundir.PREPROCESS, ""), of_run)
    else:
        preprocessing = preprocessing_of(config.data, of_run) or ArrayPreprocessing.of(empty_sample(manifest))
    check_fits(preprocessing, empty_sample(manifest))
    if not target.named:
        return Carried(None, preprocessing)
    path = labels or run / rundir.LABELS
    names = _parse_names(path, read_text(path, LARGEST) if labels is not None else texts.get(rundir.LABELS, ""))
    if len(names) != target.width or len(set(names)) != target.width:
        raise UserError(f"{path}: has {len(set(names))} different names; the run has {target.width} {target.kind}")
    return Carried(names, preprocessing)


def _parse_preprocessing(path: Path, text: str, tokenizer: str | None) -> Preprocessing:
    try:
        tree = from_json(text)
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {error}") from error
    if tokenizer is not None and isinstance(tree, dict):
        tree["tokenizer"] = tokenizer
    return _validate(path, tree)


def _validate(what: object, tree: Any) -> Preprocessing:
    try:
        return PREPROCESSING.validate_python(tree)
    except ValidationError as error:
        raise UserError(f"{what}: {describe(error)}") from error


def _parse_names(path: Path, text: str) -> list[str]:
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return NAMES.validate_python(json.loads(text))  # pydantic's own reader refuses a lone surrogate
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged: {error}; it must be a JSON list of names") from error


def _check_tokenizer(path: Path, text: str, config: Config) -> None:
    words = parse_tokenizer(text, str(path)).get_vocab_size()
    if words > config.data.vocabulary:
        raise UserError(f"{path}: has {words:,} words; the run was trained on {config.data.vocabulary:,} at most")
