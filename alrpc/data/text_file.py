"""Labelled texts of a CSV or JSON-lines file. Every error names the line on which it occurs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alrpc.errors import UserError
from alrpc.reading import regular

SUFFIXES = (".csv", ".jsonl", ".json")


class Record(NamedTuple):
    """A text, its label as a string, and the line of the file (from 1) on which it begins."""

    line: int
    text: str
    label: str


def read_records(path: Path, text_column: str, label_column: str) -> list[Record]:
    """Read all labelled texts of a file, in its order.

    Args:
        path: a .csv file, whose first line names the columns; otherwise a file with one JSON object a line. The encoding is
            UTF-8; empty lines are skipped.

    Raises:
        UserError: naming file and line of a record that cannot be read, or has no text or no label.
    """
    read = _read_csv if path.suffix.lower() == ".csv" else _read_json
    records = []
    for line, text, label in read(path, text_column, label_column):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{path}:{line}: {text_column} is {_short(text)}; it must be a text that is not empty")
        if isinstance(label, bool):
            label = json.dumps(label)
        if not isinstance(label, str | int) or not str(label).strip():
            raise UserError(f"{path}:{line}: {label_column} is {_short(label)}; it must be a label, a name or an integer")
        records.append(Record(line, text, str(label).strip()))
    if not records:
        raise UserError(f"{path}: has no texts; it must have some of each label")
    return records


def _read_csv(path: Path, text_column: str, label_column: str) -> Iterator[tuple[int, str, str]]:
    limit = csv.field_size_limit(2**31 - 1)  # a long text exceeds the default of 128 KiB
    try:
        rows = _csv_rows(path)
        first, columns = next(rows, (1, []))
        columns = [name.strip() for name in columns]
        _check_columns(path, first, columns, text_column, label_column)
        text, label = columns.index(text_column), columns.index(label_column)
        for line, fields in rows:
            if len(fields) != len(columns):
                raise UserError(
                    f"{path}:{line}: {len(fields)} fields; it must have {len(columns)}: {', '.join(columns)}"
                    ' (a field with commas must be quoted "…")'
                )
            yield line, fields[text], fields[label]
    finally:
        csv.field_size_limit(limit)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The first line and the fields of each record; quoted fields may span several lines."""
    reader = csv.reader((text for _, text in read_lines(path)), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f'{path}:{line}: not CSV: {error}; a quoted field ends with ", and a quote in it is ""') from error
        if fields:
            yield line, fields


def _read_json(path: Path, text_column: str, label_column: str) -> Iterator[tuple[int, Any, Any]]:
    for line, text in read_lines(path):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{line}: not JSON: {error}; each line must be one JSON object") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{line}: got a {type(row).__name__}; each line must be one JSON object")
        _check_columns(path, line, row, text_column, label_column)
        text = row[text_column]
        if isinstance(text, str):
            text = text.encode(errors="replace").decode()  # a lone surrogate such as \ud83d is valid JSON, but not valid text
        yield line, text, row[label_column]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read the number (from 1) and the text of each line, with its line break.

    Raises:
        UserError: naming file and line, if a line is not UTF-8 or far too long.
    """
    for number, line in regular.read_lines(path):
        yield number, regular.decode_line(path, number, line)


def _check_columns(path: Path, line: int, known: Iterable[str], text_column: str, label_column: str) -> None:
    for field, column in (("text_column", text_column), ("label_column", label_column)):
        if column not in known:
            raise UserError(f"{path}:{line}: no column {column!r}; set data.{field} to one of: {', '.join(known) or '(none)'}")


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
