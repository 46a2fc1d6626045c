"""Data sets by name, and the stream of micro-batches that a data set, a seed and an epoch determine.

This module imports torch only when data is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alrpc.config import Data, parse_section
from alrpc.config.own_code import import_function
from alrpc.data.catalog import TEXT, VISION, check_data
from alrpc.errors import UserError, exit_call

if TYPE_CHECKING:
    from alrpc.data.dataset import Dataset


def load_data(name: str, **fields: Any) -> Dataset:
    """Load a data set by name, or by `package.module:function`, a function that is called without arguments.

    Args:
        fields: fields of the configuration's section `data`: root, augmentation, file, …; see `alrpc.config.Data`.

    Raises:
        UserError: when a field is wrong, or the data can neither be read nor downloaded.
    """
    return read_data(parse_section("data", {"name": name, **fields}))


def read_data(data: Data) -> Dataset:
    """Load the data set that the configuration's section `data` describes; raises like `load_data`."""
    from alrpc.data import digits, synthetic_text, text, vision
    from alrpc.data.dataset import Dataset

    check_data(data)
    if data.name == "digits":
        return digits.load()
    if data.name == "synthetic-text":
        return synthetic_text.load()
    if data.name in VISION:
        return vision.load(data)
    if data.name in TEXT:
        return text.load(data)
    try:
        dataset = import_function(data.name, "data.name")()
    except SystemExit as error:
        raise UserError(f"data.name: {data.name} called {exit_call(error)}") from error
    if not isinstance(dataset, Dataset):
        raise UserError(f"data.name: {data.name} returned {type(dataset).__name__}; it must return an alrpc.Dataset")
    return dataset
