"""Regular files, read within bounds: never a FIFO, a device or a directory, and never more than the caller expects."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from alrpc.errors import UserError

MIB = 1 << 20
LINE = 64 * MIB  # bytes of the longest line; the spans of 64 packets in 1,000 components take a tenth
KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


class Absent(UserError):
    """There is no such file."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; nothing else is waited for or read.

    Raises:
        Absent: when there is no such file.
        UserError: for anything but a regular file, or one that cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for its writer
    except FileNotFoundError as error:
        raise Absent(f"{path}: cannot be read: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise UserError(f"{path}: got {KINDS.get(stat.S_IFMT(mode), 'a device')}; it must be a regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """The contents of a regular file of at most `most` bytes; raises like `open_regular`, and UserError for a larger one."""
    with open_regular(path) as file:
        _check_size(path, file, most)
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise UserError(f"{path}: got more than {most:,} bytes; such a file has {most:,} at most")
    return data


def _check_size(path: Path, file: BinaryIO, most: int) -> None:
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise UserError(f"{path}: got {size:,} bytes; such a file has {most:,} at most")


def read_text(path: Path, most: int) -> str:
    """The text of a regular file in UTF-8; raises like `read_bytes`, and UserError naming the line that is not UTF-8."""
    data = read_bytes(path, most)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8: {error.reason}; save the file as UTF-8") from error


def read_lines(path: Path, most: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The number, from 1, and the bytes of each line, with its line break; reads on as the lines are taken.

    Args:
        most: bytes of the largest file; None for a file of any size, whose lines the caller does not keep.

    Raises:
        UserError: like `open_regular`; for a larger file; or for a line of more than LINE bytes.
    """
    with open_regular(path) as file:
        if most is not None:
            _check_size(path, file, most)
        yield from lines_of(path, file)


def lines_of(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The same of a file that is open, which `path` names in messages."""
    number = 0
    while line := _next_line(path, file):
        number += 1
        if len(line) > LINE:
            raise UserError(f"{path}:{number}: got a line of more than {LINE:,} bytes; lines are shorter")
        yield number, line


def _next_line(path: Path, file: BinaryIO) -> bytes:
    try:
        return file.readline(LINE + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def decode_line(path: Path, number: int, line: bytes) -> str:
    """A line's text; raises UserError naming file and line when it is not UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8: {error.reason}; save the file as UTF-8") from error
