"""Examples in columns, as a file, an archive of arrays or a data set of Hugging Face has them: made into splits.

columns of the input ──► texts, images or numbers ──► preprocessing ──► inputs of a split
column of the label ───► classes or labels by name, or values ────────► labels of a split
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.utils.data import Subset

from alrpc.config import Data
from alrpc.data import text, vision
from alrpc.data.dataset import Dataset, Split, draw_share
from alrpc.data.preprocessing import ArrayPreprocessing, ImagePreprocessing, Preprocessing, TextPreprocessing, pixels_of
from alrpc.errors import UserError
from alrpc.objectives.targets import Classes, Labels, Target, Values


class Column(NamedTuple):
    """A column of N rows."""

    kind: Literal["texts", "images", "numbers"]
    read: Callable[[], Any]
    """Gives the rows: a list of texts; a sequence of `PIL.Image`s, each decoded when it is asked for; or an array, (N, ...)."""
    names: Sequence[str] | None = None
    """The names of classes, of which numbers are the indices."""

    def part(self, rows: Tensor) -> Column:
        """The column of the rows with these indices."""

        def read() -> Any:
            known = self.read()
            if isinstance(known, numpy.ndarray):
                return known[rows.numpy()]
            return [known[row] for row in rows.tolist()] if self.kind == "texts" else Subset(known, rows.tolist())

        return self._replace(read=read)


class Table(NamedTuple):
    """Columns of equally many rows."""

    source: str
    """What they are called in messages: a file, or a data set and its split."""
    columns: Mapping[str, Column]


@dataclass(frozen=True, kw_only=True)
class ImageColumn(vision.ImageFiles):
    """Images of a column: `inputs` gives a `PIL.Image` for an index."""

    source: str = ""

    def decode(self, index: int) -> Tensor:
        try:
            return pixels_of(self.inputs[index], self.shape[0], self.shape[1:])
        except Exception as error:  # Pillow's, of many types
            reason, rows = " ".join(str(error).split()) or type(error).__name__, self.inputs
            while isinstance(rows, Subset):
                index, rows = rows.indices[index], rows.dataset
            raise UserError(f"{self.source}: row {index}: not a readable image: {reason}") from error


def make_dataset(train: Table, test: Table | None, data: Data, validation: Table | None = None) -> Dataset:
    """The data set of labelled examples to train on and to test on; without the latter, of a share that is always the same.

    Raises:
        UserError: naming the column, and what is wrong in it.
    """
    chosen = _choose(train, data)
    if test is None:
        train, test = hold_back(train, data)
    kind = train.columns[chosen[0]].kind
    target, names = target_of(train, data.label_column)
    if kind == "texts":
        dataset = _of_texts(train, test, chosen[0], data, target, names)
    else:
        prepared = vision.preprocessing(data) if kind == "images" else _learn(_numbers(train, chosen))
        images = isinstance(prepared, ImagePreprocessing)
        if not images and data.augmentation != "none":
            raise UserError(f"data.augmentation: got {data.augmentation}, but {train.source} has no images; use none")
        trained, tested = (make_split(table, data, target, names, prepared, "trained on") for table in (train, test))
        trained = vision.augmented(trained, data) if images else trained
        dataset = Dataset(trained, tested, target, classes=names, preprocessing=prepared if images else None)
    if validation is None:
        return dataset
    split = make_split(validation, data, dataset.target, dataset.class_names, dataset.preprocessed_by, "trained on")
    return replace(dataset, validation=split)


def make_split(
    table: Table,
    data: Data,
    target: Target,
    names: Sequence[str] | None,
    prepared: Preprocessing,
    whose: str = "of the run",
) -> Split:
    """The split of a table, for a network that is trained to tell this target, with this preprocessing.

    Args:
        names: of the classes, or of the labels; None for values.
        whose: what the classes are, for the message about another one.
    """
    chosen = _choose(table, data)
    kind = table.columns[chosen[0]].kind
    labels = labels_of(table, data.label_column, target, names, whose)
    if isinstance(prepared, TextPreprocessing) and kind == "texts":
        return text.encoded(_checked(table, chosen[0]).tolist(), labels, prepared)
    if isinstance(prepared, ImagePreprocessing) and kind == "images":
        return vision.images_of(prepared, table.columns[chosen[0]].read(), labels, partial(ImageColumn, source=table.source))
    if not isinstance(prepared, TextPreprocessing) and kind == "numbers":
        inputs = _numbers(table, chosen)
        if _learn(inputs).tensors == prepared.tensors:
            return (
                Split(inputs, labels)
                if isinstance(prepared, ArrayPreprocessing)
                else vision.images_of(prepared, inputs, labels)
            )
        kind = f"{str(inputs.dtype).removeprefix('torch.')} {tuple(inputs.shape[1:])}"
    wanted = ", ".join(f"{dtype} {shape}" for dtype, shape in prepared.tensors.values()) if kind[-1] == ")" else prepared.kind
    raise UserError(
        f"{table.source}: {', '.join(chosen)}: got {kind}, but the network takes {wanted}; set data.columns to such"
    )


def _choose(table: Table, data: Data) -> list[str]:
    """The columns of the input: of texts or of images one, of numbers one or several."""
    known = table.columns
    for field, names in (("columns", data.columns), ("label_column", [data.label_column])):
        if missing := [name for name in names if name not in known]:
            raise UserError(
                f"{table.source}: no column {missing[0]!r}; set data.{field} to one of: {', '.join(known) or '(none)'}"
            )
    chosen = data.columns or [name for name in known if name != data.label_column]
    if not chosen or data.label_column in chosen:
        raise UserError(
            f"{table.source}: data.columns: got {', '.join(chosen) or 'none'}; give columns beside that of the label"
        )
    kinds = {known[name].kind for name in chosen}
    if len(chosen) > 1 and kinds != {"numbers"}:
        told = ", ".join(f"{name} ({known[name].kind})" for name in chosen)
        raise UserError(
            f"{table.source}: has {told}; set data.columns to one column of texts or images, or to those of numbers"
        )
    rows = {name: len(known[name].read()) for name in (*chosen, data.label_column)}
    if len(set(rows.values())) > 1 or not rows[data.label_column]:
        told = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise UserError(f"{table.source}: has different numbers of rows, or none: {told}; give one of each for an example")
    return list(chosen)


def hold_back(table: Table, data: Data) -> tuple[Table, Table]:
    """What to train on and what to test on: a share of each class, which is always the same."""
    labels, by_class = _checked(table, data.label_column), isinstance(target_of(table, data.label_column)[0], Classes)
    classes = (
        torch.from_numpy(numpy.unique(labels, return_inverse=True)[1].reshape(-1)) if by_class else torch.zeros(len(labels))
    )
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[draw_share(classes, data.test_share, 0, by_class)] = True
    if not held.any():
        raise UserError(
            f"data.test_share: {data.test_share} of {len(labels)} rows of {table.source} is less than one of any class; give "
            "another share, or something to test on"
        )
    parts = [(mask.nonzero().flatten()) for mask in (~held, held)]
    return tuple(table._replace(columns={name: column.part(rows) for name, column in table.columns.items()}) for rows in parts)


def _checked(table: Table, name: str) -> numpy.ndarray:
    """The rows of a column of numbers or of texts, (N, ...); raises UserError for what is neither."""
    column, where = table.columns[name], f"{table.source}: column {name!r}"
    if column.kind == "images":
        raise UserError(f"{where} has images; give names or numbers")
    if column.kind == "texts":
        rows = numpy.array(column.read(), dtype=object)
        if wrong := [row for row, each in enumerate(rows) if not isinstance(each, str)]:
            raise UserError(f"{where}: row {wrong[0]} has no text; leave such rows out")
        return rows
    rows = column.read()
    if rows.dtype.kind == "O":
        raise UserError(f"{where} is ragged: its rows differ in length, or are no numbers; make them of one shape")
    if rows.dtype.kind not in "fiub" or rows.ndim == 0 or not len(rows):
        raise UserError(f"{where} is {rows.dtype} {rows.shape}; give one number, or an array of them, for each row")
    return rows


def _numbers(table: Table, names: Sequence[str]) -> Tensor:
    """The input as a tensor, (N, ...): float32; one column of arrays of whole numbers is int64, or, if they are bytes, pixels,
    (N, C, H, W) uint8."""
    arrays = [_checked(table, name) for name in names]
    if len(arrays) > 1 or arrays[0].ndim == 1:
        flat = numpy.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
        return torch.from_numpy(flat.astype(numpy.float32))
    (array,) = arrays
    if array.dtype == numpy.uint8 and array.ndim in (3, 4):
        array = array[:, None] if array.ndim == 3 else array
        if array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.shape[1] not in (1, 3):
            raise UserError(f"{table.source}: {names[0]!r} is uint8 {array.shape}; pixels are (N, H, W), or of 1 or 3 channels")
        return torch.from_numpy(numpy.ascontiguousarray(array))
    if array.dtype == numpy.uint64 and array.max() > numpy.iinfo(numpy.int64).max:
        raise UserError(
            f"{table.source}: column {names[0]!r} has {array.max()}, which is no int64; give smaller numbers, or floats"
        )
    kind = numpy.float32 if array.dtype.kind == "f" else numpy.int64
    return torch.from_numpy(array.astype(kind))


def _learn(inputs: Tensor) -> ImagePreprocessing | ArrayPreprocessing:
    """The preprocessing of numbers: that of pixels divides them by 255."""
    if inputs.dtype != torch.uint8:
        return ArrayPreprocessing.of({"x": inputs[:1]})
    channels, height, width = inputs.shape[1:]
    return ImagePreprocessing(channels, height, width, (0.0,) * channels, (1.0,) * channels)


def target_of(table: Table, name: str) -> tuple[Target, list[str] | None]:
    """What a column of labels is of, and the names of its classes, or labels, in the order of their indices; None for values.

    Rows of several numbers are labels, 0 or 1 each, if they are whole or if there are names; other floats are values.
    """
    column, rows = table.columns[name], _checked(table, name)
    if column.names is None and rows.dtype.kind == "f":
        return Values(rows[0].size), None
    if rows.ndim > 2:
        raise UserError(
            f"{table.source}: column {name!r} is {rows.dtype} {rows.shape}; give one class a row, or floats, or labels (N, C)"
        )
    if rows.ndim == 2:
        if not rows.any():
            raise UserError(f"{table.source}: column {name!r}: no row has any of its labels; at least one must occur")
        names = list(column.names or map(str, range(rows.shape[1])))
        _check_several(table, name, rows, target := Labels(len(names)))
        return target, names
    if column.names is not None:
        return Classes(len(column.names)), list(column.names)
    names = text.sort_labels(set(map(str, numpy.unique(rows).tolist())))
    if len(names) < 2:
        raise UserError(f"{table.source}: column {name!r}: every label is {names[0]!r}; there must be two or more")
    return Classes(len(names)), names


def labels_of(table: Table, name: str, target: Target, names: Sequence[str] | None, whose: str) -> Tensor:
    """Labels of the target: (N,) int64 indices of these classes; 0 and 1, (N, count) uint8; or values, (N,) or (N, width) float32."""
    column, rows = table.columns[name], _checked(table, name)
    if isinstance(target, Labels):
        _check_several(table, name, rows, target)
        return torch.from_numpy(rows.astype(numpy.uint8))
    if names is None:
        if column.kind == "texts":
            raise UserError(f"{table.source}: column {name!r} has texts; a regression learns numbers")
        return torch.from_numpy(rows.astype(numpy.float32))
    known = {each: index for index, each in enumerate(names)}
    distinct, inverse = numpy.unique(rows, return_inverse=True)
    told = [_called(value, column.names) for value in distinct.tolist()]
    for number, label in enumerate(told):
        if label not in known:
            row = int((inverse.reshape(-1) == number).argmax())
            raise UserError(
                f"{table.source}: row {row}: label {label!r} is none of the classes {whose}; use one of: {text.listed(names)}"
            )
    return torch.tensor([known[label] for label in told])[torch.from_numpy(inverse.reshape(rows.shape))]


def _check_several(table: Table, name: str, rows: numpy.ndarray, target: Labels) -> None:
    """Refuse, with a UserError, rows of a column that are not the target's labels, 0 or 1 each."""
    where = f"{table.source}: column {name!r}"
    if rows.ndim != 2 or rows.shape[1] != target.count or rows.dtype.kind == "O":
        raise UserError(f"{where} is {rows.dtype} {rows.shape}; for {target} it is 0 and 1, (N, {target.count})")
    wrong = numpy.argwhere((rows != 0) & (rows != 1))
    if len(wrong):
        row, number = wrong[0]
        raise UserError(
            f"{where}: row {row} has {rows[row, number]} at {number}; each of several labels is 0 or 1, and a class one a row"
        )


def _called(label: Any, names: Sequence[str] | None) -> str:
    """The name of a label. A number is the index of a class where classes have names, and never one of the names."""
    if names is None or not isinstance(label, int):
        return str(label)
    return names[label] if 0 <= label < len(names) else f"index {label}"


def _of_texts(train: Table, test: Table, column: str, data: Data, target: Target, names: Sequence[str] | None) -> Dataset:
    """The data set of texts, prepared with a vocabulary of those to train on, and kept in the user's cache."""
    if find_spec("tokenizers") is None:
        raise UserError("data.name: texts need the extra: pip install 'alrpc[text]' (tokenizers is missing)")
    if names is None:
        raise UserError(f"{train.source}: column {data.label_column!r} has floats; texts learn classes, names or whole numbers")
    told = [labels_of(table, data.label_column, target, names, "trained on").tolist() for table in (train, test)]
    several = isinstance(target, Labels)  # of which each set that occurs is a class of its own here, such as 0110
    labelled = tuple(
        text.Labelled(_checked(table, column).tolist(), ["".join(map(str, row)) if several else str(row) for row in rows])
        for table, rows in zip((train, test), told, strict=True)
    )
    identity = hashlib.sha256(repr([names, *labelled]).encode(errors="surrogatepass")).hexdigest()
    called = {} if several else {str(number): name for number, name in enumerate(names)}
    dataset = text.prepare(["columns", identity], lambda: labelled, called, data)
    if not several:
        return dataset
    sets = torch.tensor([list(map(int, name)) for name in dataset.class_names], dtype=torch.uint8)
    trained, tested = (replace(split, labels=sets[split.labels]) for split in (dataset.train, dataset.test))
    return replace(dataset, train=trained, test=tested, target=target, classes=names)
