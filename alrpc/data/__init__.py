"""Data sets by name, and the stream of micro-batches that a data set, a seed and an epoch determine.

This module imports torch only when data is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alrpc.config import Data, Train, parse_section
from alrpc.config.own_code import import_function
from alrpc.data.catalog import TEXT, VISION, check_data, is_table
from alrpc.errors import UsageError, UserError, exit_call

if TYPE_CHECKING:
    from alrpc.data.dataset import Dataset, Split
    from alrpc.data.preprocessing import Preprocessing
    from alrpc.objectives.targets import Target


def load_data(name: str, *, seed: int = 0, **fields: Any) -> Dataset:
    """Load a data set by name, or by `package.module:function`, a function that is called without arguments.

    Args:
        seed: what decides, as train.seed does in a run, which samples the field `validation` holds out.
        fields: fields of the configuration's section `data`: root, augmentation, file, …; see `alrpc.config.Data`.

    Raises:
        UserError: when a field is wrong, or the data can neither be read nor downloaded.
    """
    return read_data(parse_section("data", {"name": name, **fields}), Train(seed=seed))


def read_data(data: Data, train: Train) -> Dataset:
    """Load the data set that the configuration's section `data` describes, for a run with these settings; raises like `load_data`."""
    check_data(data)
    return for_run(_read(data), data, train)


def for_run(dataset: Dataset, data: Data, train: Train) -> Dataset:
    """The data set as a run reads it: with a part held out for validation, and with the weights of its classes.

    Raises:
        UserError: when it does not go with the run's settings of validation, class weights, metrics and workers.
    """
    from alrpc.data.dataset import hold_out, weigh_classes
    from alrpc.objectives.metrics import check_metrics

    dataset = weigh_classes(hold_out(dataset, data.validation, train), train.class_weights)
    check_metrics(train.metrics, dataset.target, max(len(dataset.test), len(dataset.validation or ())))
    if dataset.train.endless and data.workers > 1:
        raise UsageError(f"data.workers: got {data.workers}, but a stream is read in order, by one process; use 0 or 1")
    return dataset


def _read(data: Data) -> Dataset:
    """The data set as it is, without a part that is held out."""
    from alrpc.data import columns, digits, synthetic_text, tables, text, vision
    from alrpc.data.dataset import Dataset

    if data.name == "digits":
        return digits.load()
    if data.name == "synthetic-text":
        return synthetic_text.load()
    if data.name in VISION:
        return vision.load(data)
    if data.name in TEXT:
        return text.load(data)
    if is_table(data):
        return columns.make_dataset(*tables.read_tables(data), data)
    try:
        dataset = import_function(data.name, "data.name")()
    except SystemExit as error:
        raise UserError(f"data.name: {data.name} called {exit_call(error)}") from error
    if not isinstance(dataset, Dataset):
        raise UserError(f"data.name: {data.name} returned {type(dataset).__name__}; it must return an alrpc.Dataset")
    return dataset


def read_test(data: Data, target: Target, classes: Sequence[str] | None, preprocessing: Preprocessing) -> Split:
    """Load the test split alone, prepared for a network that was trained before; raises like `load_data`.

    Args:
        target: what it was trained to tell.
        classes: the names of the classes, or labels, that it was trained on, in the order of their indices; None for values.
        preprocessing: that of the training. With the tokenizer that it has, a `text-file` with a `test_file` needs no `file`.
    """
    from alrpc.data import columns, tables, text, vision
    from alrpc.data.preprocessing import ImagePreprocessing, TextPreprocessing

    data = data.model_copy(update={"file": data.test_file or data.file, "word_vectors": None})  # what only a training reads
    check_data(data)
    if classes is not None and data.name in VISION and isinstance(preprocessing, ImagePreprocessing):
        return vision.load_test(data, classes, preprocessing)
    if classes is not None and data.name in TEXT and isinstance(preprocessing, TextPreprocessing):
        return text.load_test(data, classes, preprocessing)
    if is_table(data):
        train, test = tables.read_tables(data)
        return columns.make_split(test or columns.hold_back(train, data)[1], data, target, classes, preprocessing)
    dataset = _read(data)
    if dataset.preprocessed_by != preprocessing or dataset.target != target or dataset.class_names != classes:
        raise UserError(f"data.name: got {data.name}, whose inputs or classes are not those of the run")
    return dataset.test


def preprocessing_of(data: Data, tokenizer: str | None) -> Preprocessing | None:
    """The preprocessing of the data set that the section `data` names, of which nothing is read; None for one's own data set.

    Args:
        tokenizer: the JSON of the run's tokenizer, for texts.
    """
    from alrpc.data import digits, vision
    from alrpc.data.preprocessing import TextPreprocessing

    if data.name == "digits":
        return digits.PREPROCESSING
    if data.name in VISION:
        return vision.preprocessing(data)
    return TextPreprocessing(tokenizer, data.max_tokens) if data.name in TEXT and tokenizer is not None else None
