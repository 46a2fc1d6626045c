"""Tables of labelled examples: parquet files, archives of arrays (.npz), and data sets of Hugging Face."""

from __future__ import annotations

import zipfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from alrpc.config.data import HUB, Data
from alrpc.data.columns import Column, Table
from alrpc.data.hub import load_splits
from alrpc.errors import UsageError, UserError
from alrpc.reading.regular import open_regular

if TYPE_CHECKING:
    from datasets import Dataset

Tables = tuple[Table, Table | None]
"""To train on and to test on; None for a share of the former."""
SIDES = ("_train", "_test")  # of the names of arrays in an archive that has both


def read_tables(data: Data) -> Tables:
    """The tables of a data set whose name is npz, parquet, or hf:NAME.

    Raises:
        UserError: naming the field, file or column that is missing or wrong.
    """
    if data.name.startswith(HUB):
        return _read_hub(data)
    read = _read_npz if data.name == "npz" else partial(_read_parquet, root=data.root)
    train, test = read(data.file)
    if data.test_file is not None:
        tested, test = read(data.test_file)
        test = test or tested
    return train, test


def table_of(dataset: Dataset, source: str) -> Table:
    """The columns of a split of Hugging Face's."""
    return Table(source, {name: _column(dataset, name) for name in dataset.column_names})


def column_of(rows: numpy.ndarray) -> Column:
    """The column of an array, (N, ...)."""
    texts = rows.dtype.kind == "U" or (rows.dtype.kind == "O" and all(isinstance(each, str) for each in rows.flat))
    return Column("texts", rows.tolist) if texts and rows.ndim == 1 and len(rows) else Column("numbers", lambda: rows)


def _read_hub(data: Data) -> Tables:
    name = data.name.removeprefix(HUB)
    try:
        splits = load_splits(name, data.root, data.subset)
    except UserError as error:
        raise UserError(f"data.name: {data.name} is {error}") from error
    tested = data.test_split or ("test" if "test" in splits else None)
    for field, split in (("train_split", data.train_split), ("test_split", tested)):
        if split is not None and split not in splits:
            raise UsageError(f"data.{field}: {data.name} has no split {split!r}; use one of: {', '.join(splits)}")
    train, test = (split and table_of(splits[split], f"{name}, split {split}") for split in (data.train_split, tested))
    return train, test


def _column(dataset: Dataset, name: str) -> Column:
    import datasets

    kind = dataset.features[name]
    if isinstance(kind, datasets.Image):
        return Column("images", lambda: dataset[name])
    if isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string"):
        return Column("texts", cache(lambda: dataset[name][:]))
    return Column(
        "numbers", cache(partial(_numbers, dataset, name)), kind.names if isinstance(kind, datasets.ClassLabel) else None
    )


def _numbers(dataset: Dataset, name: str) -> numpy.ndarray:
    """A column as an array, (N, ...); of objects if its rows differ in length."""
    rows: Any = dataset.with_format("numpy")[name][:]
    return rows if isinstance(rows, numpy.ndarray) else numpy.array(rows, dtype=object)


def _read_parquet(path: Path, root: Path | None) -> Tables:
    """The table of a parquet file, of which `datasets` keeps a copy that is mapped into memory."""
    import datasets

    try:
        dataset = datasets.Dataset.from_parquet(str(path), cache_dir=str(root) if root else None)
    except Exception as error:  # pyarrow's, among others
        raise UserError(f"{path}: not a readable parquet file: {' '.join(str(error.__cause__ or error).split())}") from error
    return table_of(dataset, str(path)), None


def _read_npz(path: Path) -> Tables:
    """The arrays of an archive; those named NAME_train and NAME_test are the columns NAME of two tables."""
    with open_regular(path) as file:
        try:
            archive = numpy.load(file, allow_pickle=False)
            arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            if "allow_pickle" in reason:
                reason = "it has Python objects; save arrays of numbers, all rows of one shape"
            raise UserError(f"{path}: not a readable archive of arrays: {reason}") from error
    sides = [{name.removesuffix(side): rows for name, rows in arrays.items() if name.endswith(side)} or None for side in SIDES]
    train, test = sides if all(sides) else (arrays, None)
    return tuple(table and Table(str(path), {name: column_of(rows) for name, rows in table.items()}) for table in (train, test))
