"""A name → a data set; a data set, a seed and an epoch → a stream of micro-batches that can be entered anywhere."""

from __future__ import annotations

from pathlib import Path

from alrpc.data.dataset import Dataset
from alrpc.errors import UserError
from alrpc.imports import import_function

NAMES = ("digits", "mnist", "fashion-mnist")


def check_data(name: str, root: Path | None) -> None:
    """Refuse what can be refused without reading the data.

    Raises:
        UserError: naming `data.name` or `data.root`.
    """
    if ":" in name:
        import_function(name, "data.name")
    elif name not in NAMES:
        raise UserError(
            f"data.name: unknown data set {name!r}; use {', '.join(NAMES)}, or package.module:function for your own"
        )
    if root is not None and not root.is_dir():
        raise UserError(f"data.root: {root} is not a directory; give one that exists (data is downloaded into it if absent)")


def load_data(name: str, root: Path | str | None = None) -> Dataset:
    """Load a data set: `digits`, `mnist`, `fashion-mnist`, or `package.module:function`, called without arguments.

    Args:
        root: directory that holds the data, or receives the download; None for the user's cache directory.

    Raises:
        UserError: when the name is unknown, the root is missing, or the data can be neither read nor downloaded.
    """
    root = Path(root) if root is not None else None
    check_data(name, root)
    if name == "digits":
        from alrpc.data.digits import load_digits

        return load_digits()
    if name in ("mnist", "fashion-mnist"):
        from alrpc.data.mnist import load_mnist

        return load_mnist(name, root)
    dataset = import_function(name, "data.name")()
    if not isinstance(dataset, Dataset):
        raise UserError(f"data.name: {name} returned {type(dataset).__name__}; it must return an alrpc.Dataset")
    return dataset
