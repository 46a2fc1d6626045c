"""Data sets by name, and the stream of micro-batches that a data set, a seed and an epoch determine."""

from __future__ import annotations

from alrpc.config import Data, import_function, parse_section
from alrpc.data import digits, synthetic_text, text, vision
from alrpc.data.dataset import Dataset
from alrpc.errors import UserError

NAMES = ("digits", *vision.NAMES, *text.NAMES, "synthetic-text")


def check_data(data: Data) -> None:
    """Check the configuration's section `data`, as far as is possible without reading the data.

    Raises:
        UserError: naming the wrong field of the section.
    """
    if ":" in data.name:
        import_function(data.name, "data.name")
    elif data.name not in NAMES:
        raise UserError(
            f"data.name: unknown data set {data.name!r}; use {', '.join(NAMES)}, or package.module:function for your own"
        )
    if data.root is not None and not data.root.is_dir():
        raise UserError(
            f"data.root: {data.root} is not a directory; give one that exists (data is downloaded into it if absent)"
        )
    if data.augmentation != "none" and data.name not in vision.NAMES:
        raise UserError(f"data.augmentation: got {data.augmentation}, but {data.name} can only have none")
    if data.name in vision.NAMES:
        vision.check(data)
    if data.name in text.NAMES:
        text.check(data)


def load_data(name: str, **fields) -> Dataset:
    """Load a data set by name, or by `package.module:function`, a function that is called without arguments.

    Args:
        fields: fields of the configuration's section `data`: root, augmentation, file, …; see `alrpc.config.Data`.

    Raises:
        UserError: when a field is wrong, or the data can neither be read nor downloaded.
    """
    return read_data(parse_section(Data, "data", {"name": name, **fields}))


def read_data(data: Data) -> Dataset:
    """Load the data set that the configuration's section `data` describes; raises like `load_data`."""
    check_data(data)
    if data.name == "digits":
        return digits.load()
    if data.name == "synthetic-text":
        return synthetic_text.load()
    if data.name in vision.NAMES:
        return vision.load(data)
    if data.name in text.NAMES:
        return text.load(data)
    dataset = import_function(data.name, "data.name")()
    if not isinstance(dataset, Dataset):
        raise UserError(f"data.name: {data.name} returned {type(dataset).__name__}; it must return an alrpc.Dataset")
    return dataset
