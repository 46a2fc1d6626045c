"""Raw examples from files, folders and standard input, one after another: no more is held than the line, or the row, that is asked for.

This module imports neither torch nor numpy before an array is read.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alrpc.errors import UsageError, UserError
from alrpc.reading.documents import shown
from alrpc.reading.regular import lines_of, open_regular

STDIN = "-"
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = {".txt": "lines", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".npy": "npy"}
IN_FOLDERS = {"images": IMAGES, "texts": (".txt", ".csv", ".jsonl"), "arrays": tuple(FORMATS)}
"""What is taken of a folder, by the kind of the run's preprocessing."""


class Example(NamedTuple):
    """A raw example that has not been read yet."""

    place: str
    """FILE, FILE:LINE, or FILE[ROW] in an array."""
    read: Callable[[], Any]
    """Gives the example, for the run's preprocessing; raises UserError, without the place, for a bad one."""


def check_sources(sources: Sequence[str]) -> None:
    """Refuse, with a UsageError, sources that are not there."""
    if not sources:
        raise UsageError("SOURCE: not given; give files, folders, or - for standard input")
    if list(sources).count(STDIN) > 1:
        raise UsageError("SOURCE: got - twice; standard input can be read once")
    for source in sources:
        if source != STDIN and not Path(source).exists():
            raise UsageError(f"SOURCE: no file or folder {source}; give one that exists, or - for standard input")


def choose_columns(given: Sequence[str], kind: str, text_column: str) -> Sequence[str]:
    """The columns to read, none for all of them: those that are given, or else `text_column`, or `image`.

    Raises:
        UsageError: for several columns and a run whose example is a single text or path.
    """
    if kind != "arrays" and len(given) > 1:
        raise UsageError(f"--column: got {', '.join(given)}; a run on {kind} takes one column, give only that")
    return given or {"texts": (text_column,), "images": ("image",)}.get(kind, ())


def read_examples(sources: Sequence[str], kind: str, columns: Sequence[str], form: str | None = None) -> Iterator[Example]:
    """The examples of all sources, in order; those of a folder in the order of their names.

    Args:
        sources: files, folders, or - for standard input.
        kind: that of the run's preprocessing: images, texts or arrays.
        columns: the columns (CSV) or keys (JSON lines) of an example; none for all of them.
        form: lines, csv or jsonl, for what no suffix tells, such as standard input; None for lines.

    Raises:
        UserError: naming a file that cannot be read at all.
    """
    for source in sources:
        path = Path(source)
        for file in _files_in(path, kind) if source != STDIN and path.is_dir() else (path,):
            yield from _examples_of(file, kind, columns, form)


def _files_in(folder: Path, kind: str) -> Iterator[Path]:
    taken = False
    for place, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(IN_FOLDERS[kind]):
                taken = True
                yield Path(place, name)
    if not taken:
        raise UserError(f"{folder}: has no file for a run on {kind}; give one with {', '.join(IN_FOLDERS[kind])}")


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}; give folders that you may read") from error


def _examples_of(path: Path, kind: str, columns: Sequence[str], form: str | None) -> Iterator[Example]:
    suffix = path.suffix.lower()
    form = FORMATS.get(suffix) or form or ("lines" if kind != "images" or str(path) == STDIN else "image")
    if form == "image":
        yield Example(str(path), lambda: path)
    elif form == "npy":
        yield from _rows(path)
    elif form == "csv":
        yield from _records(path, kind, columns)
    else:
        parse = partial(_of_json, kind, columns) if form == "jsonl" else PARSE[kind]
        for number, text in _lines(path):
            if text.strip():
                yield Example(f"{path}:{number}", partial(_checked, parse, text.rstrip("\r\n")))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number, from 1, and the text of each line; bytes that are not UTF-8 are told when their line is parsed."""
    with sys.stdin.buffer if str(path) == STDIN else open_regular(path) as file:
        for number, line in lines_of(path, file):
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")


def _checked(parse: Callable[[str], Any], text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError("not UTF-8; save the file as UTF-8") from error
    return parse(text)


def _numbers(text: str) -> Any:
    """The numbers of a line: divided by commas or blanks; or JSON, a list, or an object of lists by the names of tensors."""
    if text.lstrip().startswith(("[", "{")):
        return _json(text)
    return [_number(part) for part in re.split(r"[,;\s]+", text.strip(" ,;\t"))]


def _number(text: str) -> int | float:
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError as error:
        raise UserError(f"got {shown(text)}; give a number") from error


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except UserError:
        return False
    return True


PARSE: dict[str, Callable[[str], Any]] = {"texts": str, "images": lambda text: Path(text.strip()), "arrays": _numbers}
"""What a line is, by the kind of the run's preprocessing."""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}; each line must be one JSON value") from error


def _of_json(kind: str, columns: Sequence[str], text: str) -> Any:
    value = _json(text)
    if not isinstance(value, dict):
        return value
    if missing := [column for column in columns if column not in value]:
        raise UserError(f"no key {missing[0]!r}; set --column to some of: {', '.join(value) or '(none)'}")
    if not columns:
        return value
    found = [value[column] for column in columns]
    if kind == "images" and isinstance(found[0], str):
        return Path(found[0])
    return found[0] if len(found) == 1 else found


def _records(path: Path, kind: str, columns: Sequence[str]) -> Iterator[Example]:
    """The records of a CSV file, whose first one names the columns."""
    csv.field_size_limit(2**31 - 1)  # a long text exceeds the default of 128 KiB
    reader = csv.reader((text for _, text in _lines(path)), strict=True)
    names: list[str] | None = None
    while True:
        place = f"{path}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f'not CSV: {error}; a quoted field ends with ", and a quote in it is ""'
            if names is None:  # the next record is no header
                raise UserError(f"{place}: {reason}") from error
            yield Example(place, partial(_raise, reason))
            continue
        if names is None:
            names = [name.strip() for name in fields]
            if missing := [column for column in columns if column not in names]:
                raise UserError(f"{place}: no column {missing[0]!r}; set --column to some of: {', '.join(names) or '(none)'}")
            if kind == "arrays" and not columns and names and all(map(_is_number, names)):
                raise UserError(
                    f"{place}: got only numbers; the first line must name the columns (if these are names, give each by --column)"
                )
            chosen = [names.index(column) for column in columns or names]
        elif fields:
            yield Example(place, partial(_of_fields, kind, names, chosen, fields))


def _of_fields(kind: str, names: list[str], chosen: list[int], fields: list[str]) -> Any:
    if len(fields) != len(names):
        raise UserError(
            f'{len(fields)} fields; it must have {len(names)}: {", ".join(names)} (a field with commas must be quoted "…")'
        )
    found = [fields[index] for index in chosen]
    return [_number(each) for each in found] if kind == "arrays" else _checked(PARSE[kind], found[0])


def _raise(message: str) -> Any:
    raise UserError(message)


def _rows(path: Path) -> Iterator[Example]:
    """The rows of an array in a .npy file, of which only those that are asked for are read."""
    import numpy

    open_regular(path).close()
    try:
        array = numpy.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not an array of numbers in numpy's format: {' '.join(str(error).split())}") from error
    if not isinstance(array, numpy.ndarray):
        raise UserError(f"{path}: got an archive of arrays (.npz); save one array, by numpy.save")
    if array.ndim == 0:
        raise UserError(f"{path}: got a single number; its first dimension must be the examples")
    for row in range(len(array)):
        yield Example(f"{path}[{row}]", partial(array.__getitem__, row))
