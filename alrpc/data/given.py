"""`alrpc.as_dataset`: a data set of what a Python program has: arrays, map-style data sets and streams of torch or Hugging Face."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union

import numpy
import torch
from torch.utils.data import Subset, TensorDataset

from alrpc.config import PYTHON, Data, parse_section
from alrpc.data import for_run
from alrpc.data.columns import Column, Table, labels_of, make_dataset, make_split, target_of
from alrpc.data.dataset import Dataset
from alrpc.data.preprocessing import ArrayPreprocessing
from alrpc.data.samples import MapStyle, Samples, as_number, check_alike, read_labels
from alrpc.data.stream import Stream, check_stream, first_sample, is_stream
from alrpc.data.tables import column_of, table_of
from alrpc.errors import UsageError, UserError
from alrpc.objectives.base import Tensors
from alrpc.objectives.targets import Classes, Target, Values, check_target
from alrpc.reading.documents import shown

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Source: TypeAlias = Union["tuple[ArrayLike, ArrayLike]", MapStyle, Iterable[Any]]


class _Listed(NamedTuple):
    """A map-style data set, its labels as a column, and as they were read."""

    source: MapStyle
    table: Table
    labels: numpy.ndarray


def as_dataset(
    train: Source | Mapping[str, Source],
    test: Source | None = None,
    *,
    validation: Source | float = 0.0,
    target: Target | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    **fields: Any,
) -> Dataset:
    """Make a data set of what there is: arrays, a map-style data set of torch, or a data set of Hugging Face.

    Args:
        train: one of
            a pair of inputs, (N, ...), and labels, (N,), (N, count) or (N, width), as numpy arrays, tensors or lists; inputs may be texts;
            a map-style data set, such as `torch.utils.data.Dataset`, whose samples are pairs of input and label, or mappings that have
            both by name; it is read when a sample is wanted, in the processes that `data.workers` are;
            a `datasets.Dataset`, of texts, images or numbers, by `columns` and `label_column`; with a transform of its own
            (`with_transform`) it is read as a map-style one;
            a stream, which need have no end: any iterable without a length, such as `torch.utils.data.IterableDataset` or
            `datasets.IterableDataset`, that gives such samples, the same ones whenever it is iterated. It is trained on by `train.steps`,
            and needs a `test`, whose labels say what is learned if `target` does not;
            a mapping of names to such splits, such as `datasets.DatasetDict`: `train_split` and `test_split` choose.
        test: the same to test on; None for that of a mapping, or else for `test_share` of each class in `train`, always the same.
        validation: the same to validate on; or the share of the training split that is held out for it.
        target: `alrpc.Classes(count)`, of which labels are the indices, `alrpc.Labels(count)`, or `alrpc.Values(width)`; None for values
            if labels are floats; for labels if a sample has several, whole numbers or booleans; else for the classes that the data set
            names, or that the labels to train on are.
        classes: the names of the classes, or of the labels, in the order of their indices.
        seed: what decides, as train.seed does in a run, which samples a share for validation has.
        fields: fields of the configuration's section `data`: columns, label_column, test_share, image_size, augmentation, vocabulary, …;
            see `alrpc.config.Data`.

    Raises:
        UserError: naming the split, the column or the sample that is wrong, and what would be right.
    """
    share = validation if isinstance(validation, int | float) else 0.0
    data: Data = parse_section("data", {"name": PYTHON, "validation": share, **fields})
    if target is not None:
        check_target(target)
    _check_classes(classes, target)
    if isinstance(train, Mapping):
        train, test = _chosen(train, test, data)
    if classes is None and target is None:
        classes = _classes(train)
    given = {"train": train, "test": test, "validation": None if isinstance(validation, int | float) else validation}
    if streamed := is_stream(train):
        check_stream(train)
        if test is None:
            raise UsageError("test: got None beside a stream; give data with a length to test on")
        del given["train"]
    made = {
        name: _read(source, f"{name} split", data, target, classes)
        for name, source in given.items()
        if source is not None or name == "train"
    }
    kinds = {type(each) for each in made.values()}
    if len(kinds) > 1:
        raise UsageError("train, test, validation: got arrays or columns, and map-style data sets; give all of one kind")
    if streamed:
        dataset = _of_stream(train, made, data)
    elif kinds == {Table}:
        dataset = make_dataset(made["train"], made.get("test"), data, made.get("validation"))
    else:
        dataset = _of_samples(made, data)
    if target not in (None, dataset.target):
        raise UsageError(f"target: got {target}, but the labels are those of {dataset.target}; give that, or leave it out")
    if target is not None:
        dataset = replace(dataset, target=target)  # which may have weights
    return for_run(dataset, data, parse_section("train", {"seed": seed}))


def _check_classes(classes: Any, target: Target | None) -> None:
    if classes is None:
        return
    if isinstance(classes, str) or not isinstance(classes, Collection) or not all(isinstance(each, str) for each in classes):
        raise UsageError(f"classes: got {shown(classes)}; give a list of their names, in the order of their indices")
    if target is not None and not (target.named and target.width == len(classes)):
        raise UsageError(
            f"target: got {target} beside {len(classes)} names in classes; leave one of them out, or give both alike"
        )


def _chosen(splits: Mapping[str, Source], test: Source | None, data: Data) -> tuple[Source, Source | None]:
    """What to train on and to test on of several splits."""
    tested = data.test_split or ("test" if "test" in splits else None)
    for field, name in (("train_split", data.train_split), ("test_split", tested if test is None else None)):
        if name is not None and name not in splits:
            raise UsageError(f"{field}: no split {name!r}; use one of: {', '.join(map(str, splits))}")
    return splits[data.train_split], splits[tested] if test is None and tested is not None else test


def _classes(source: Any) -> list[str] | None:
    """The names of its classes that a map-style data set has, as those of torchvision do."""
    while isinstance(source, Subset):
        source = source.dataset
    names = getattr(source, "classes", None)
    return list(names) if isinstance(names, Sequence) and not isinstance(names, str) else None


def _read(source: Source, where: str, data: Data, target: Target | None, classes: Sequence[str] | None) -> Table | _Listed:
    """A table, or a map-style data set with its labels; of both the label is such as the target says."""
    if is_stream(source) or not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise UsageError(
            f"{where}: got {type(source).__name__}; give a pair of inputs and labels, or a data set that has a length and gives the "
            "sample of an index"
        )
    if isinstance(source, TensorDataset) and len(source.tensors) == 2:
        source = source.tensors
    if isinstance(source, tuple) and len(source) == 2:
        table = Table(
            where, {"x": _column(source[0], f"{where}: inputs"), data.label_column: _column(source[1], f"{where}: labels")}
        )
    elif type(source).__module__.partition(".")[0] == "datasets" and source.format["type"] != "custom":
        table = table_of(source, where)
    else:
        labels = read_labels(source, where, data.label_column)
        return _Listed(source, Table(where, {data.label_column: _aimed(column_of(labels), target, classes)}), labels)
    if data.label_column not in table.columns:
        return table  # which is told with the columns that there are
    label = _aimed(table.columns[data.label_column], target, classes)
    return table._replace(columns={**table.columns, data.label_column: label})


def _column(given: Any, where: str) -> Column:
    if isinstance(given, Sequence) and given and isinstance(given[0], str):
        return Column("texts", lambda: list(given))
    try:
        rows = as_number(given)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: are ragged, or no numbers; make all rows of one shape") from error
    if not rows.ndim:
        raise UserError(f"{where}: got {type(given).__name__}; give an array, a tensor or a list, with a row for each sample")
    return column_of(rows)


def _aimed(column: Column, target: Target | None, classes: Sequence[str] | None) -> Column:
    """The column of the label, as one of classes or labels with these names, or of values."""
    if isinstance(target, Values) and column.kind == "numbers":
        return column._replace(read=lambda: _values(column.read()), names=None)
    if classes is None and target is not None and target.named and column.names is None:
        classes = [str(index) for index in range(target.width)]
    return column if classes is None else column._replace(names=list(classes))


def _values(rows: numpy.ndarray) -> numpy.ndarray:
    return rows.astype(numpy.float32) if rows.dtype.kind in "fiub" else rows  # which is then refused


def _of_samples(made: Mapping[str, _Listed], data: Data) -> Dataset:
    """The data set of map-style splits."""
    target, names = target_of(made["train"].table, data.label_column)
    splits = {name: _samples(listed, data, target, names) for name, listed in made.items()}
    for name in made.keys() - {"train"}:
        check_alike(_first(splits["train"]), _first(splits[name]), f"{name} split: sample 0")
    if "test" not in splits:
        splits["train"], splits["test"] = splits["train"].hold_out(data.test_share, 0, isinstance(target, Classes))
    return Dataset(splits["train"], splits["test"], target, classes=names, validation=splits.get("validation"))


def _samples(listed: _Listed, data: Data, target: Target, names: Sequence[str] | None) -> Samples:
    source, table, given = listed
    labels = labels_of(table, data.label_column, target, names, "trained on")
    return Samples(source, labels, given, table.source, data.label_column, tuple(data.columns))


def _first(samples: Samples) -> Tensors:
    """The tensors of the first sample."""
    return {name: rows[0] for name, rows in samples.batch(torch.tensor([0]))[0].items()}


def _of_stream(stream: Iterable, made: Mapping[str, Table | _Listed], data: Data) -> Dataset:
    """The data set of a stream to train on, and of arrays, columns or map-style data sets to test and to validate on."""
    table = made["test"] if isinstance(made["test"], Table) else made["test"].table
    if data.label_column not in table.columns:
        raise UserError(
            f"{table.source}: no column {data.label_column!r}; set label_column to one of: {', '.join(table.columns)}"
        )
    target, names = target_of(table, data.label_column)
    given = table.columns[data.label_column].names
    first = first_sample(stream, data.label_column, data.columns)
    learned = {"target": target, "label_column": data.label_column, "classes": names, "names_by_index": given}
    train = Stream(stream, torch.empty(0), first=first, columns=tuple(data.columns), **learned)
    prepared = ArrayPreprocessing.of({name: tensor[None] for name, tensor in first.items()})
    splits = {}
    for name, each in made.items():
        if isinstance(each, Table):
            splits[name] = make_split(each, data, target, names, prepared, "tested on")
        else:
            splits[name] = _samples(each, data, target, names)
            check_alike(first, _first(splits[name]), f"{name} split: sample 0")
    return Dataset(train, splits["test"], target, classes=names, validation=splits.get("validation"))
