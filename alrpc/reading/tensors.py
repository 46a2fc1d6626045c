"""The tensors of a safetensors file, whose header is bounded before it is read. Nothing in it is executed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from alrpc.errors import UserError
from alrpc.reading.regular import MIB, open_regular

HEADER = 16 * MIB  # bytes of the longest header; it takes about 100 for a tensor


@contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """Open a file, of whose tensors only those that are asked for are read.

    Raises:
        UserError: naming the file, when it cannot be read or is damaged.
    """
    with open_regular(path) as file:
        _check_header(path, file.read(8), os.fstat(file.fileno()).st_size)
    with _told(path), safe_open(path, framework="pt") as tensors:
        yield tensors


def parse_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors in the contents of a file; raises UserError like `open_tensors`."""
    _check_header(path, data[:8], len(data))
    with _told(path):
        return load(data)


def _check_header(path: Path, first: bytes, size: int) -> None:
    length = int.from_bytes(first, "little")
    if length > size - 8:
        raise UserError(f"{path}: is damaged: got {size:,} bytes, with a header of {length:,}")
    if length > HEADER:
        raise UserError(f"{path}: got a header of {length:,} bytes; it has {HEADER:,} at most")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: is damaged: {' '.join(str(error).split())}") from error
