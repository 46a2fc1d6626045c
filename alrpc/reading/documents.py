"""JSON, JSON lines and YAML within bounds, checked against a type; what is wrong is said in one line, `FILE: field: got …; …`."""

from __future__ import annotations

import math
import re
import reprlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from alrpc.errors import Advice, UserError
from alrpc.reading.regular import MIB, decode_line, read_lines, read_text

T = TypeVar("T")
LARGE = 128 * MIB  # bytes of the largest JSON file; the quality of 100 components on 10,000 samples takes a fifth
YAML_LARGE = MIB // 4  # bytes of the largest YAML file
YAML_NODES, YAML_DEPTH = 20_000, 50  # most values of a YAML text, its aliases written out; and how deep they may be nested

# ---- types that the contents of several files share

EXACT = 1 << 53  # integers below it are exact as a float
Count = Annotated[int, Field(ge=0, lt=EXACT)]
Whole = Annotated[int, Field(gt=-EXACT, lt=EXACT)]
Few = Annotated[int, Field(ge=0, le=10_000)]
"""The number of a stage or a component; or how many there are."""
Amount = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]
"""Seconds, or so many a second."""
Moment = Annotated[float, Field(gt=-1e12, lt=1e12, allow_inf_nan=False)]
"""A time in seconds on a process' clock; or the difference of two."""
FLOAT32 = 3.5e38  # more than the largest number of float32


def _check_value(value: float) -> float:
    if not abs(value) < FLOAT32:
        raise ValueError("it should be a finite number of float32")
    return value


Value = Annotated[float, AfterValidator(_check_value)]
Score = Annotated[float, AfterValidator(lambda value: value if abs(value) < FLOAT32 else math.nan)]
"""The score of an exit or a distance; NaN when it is not finite."""
SECONDS = TypeAdapter(Amount)
Name = Annotated[str, Field(max_length=1000)]


# ---- JSON


def read_json(path: Path, shape: TypeAdapter[T], most: int = LARGE) -> T:
    """The contents of a JSON file, checked.

    Raises:
        Absent: when there is no such file.
        UserError: when it cannot be read, is too large, is no JSON, or has other contents than `shape`.
    """
    text = read_text(path, most)
    try:
        return shape.validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from error


def read_json_lines(path: Path, most: int | None = None) -> Iterator[tuple[int, Any]]:
    """The number, from 1, and the value of each line of a JSON-lines file.

    A line that is no JSON is left out: a full disk or a crash has cut it. At the end of the file these lines are told.

    Args:
        most: bytes of the largest file; None for a file of any size, whose lines the caller does not keep.

    Raises:
        Absent: when there is no such file.
        UserError: when it cannot be read, or a line is not UTF-8 or far too long.

    Warns:
        Advice: of lines that were left out.
    """
    cut, first = 0, 0  # how many, and the number of the first
    for number, line in read_lines(path, most):
        if not line.endswith(b"\n"):  # it is being written
            break
        try:
            tree = from_json(line)
        except ValueError:
            decode_line(path, number, line)
            cut, first = cut + 1, first or number
        else:
            yield number, tree
    if cut:
        more = f" (and {cut - 1} more)" if cut > 1 else ""
        warnings.warn(f"{path}:{first}{more}: no JSON, as when a full disk has cut a line; left out", Advice, stacklevel=2)


def describe(error: ValidationError) -> str:
    """The first thing that is wrong, and how many more there are."""
    first, *others = error.errors(include_url=False, include_context=False)
    if first["type"] == "json_invalid":
        return f"is damaged: {first['msg'][0].lower()}{first['msg'][1:]}"
    name = field_name(first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    if not name and first["type"] == "value_error":  # of the whole: what is wrong in it is all that is of interest
        return first["msg"].removeprefix("Value error, ")
    return f"{name}: {complaint(first)}{more}" if name else f"{complaint(first)}{more}"


def field_name(place: Iterable[int | str]) -> str:
    """The name of a field for a message, such as `per_stage.0.host`."""
    parts = map(str, place)
    return ".".join(part if part.isprintable() and len(part) < 100 else shown(part) for part in parts)


def complaint(error: ErrorDetails) -> str:
    """Say what was given and what would be right, from one pydantic error."""
    if error["type"].startswith("missing"):
        return "not given, but needed"
    reason = re.sub(r" or (an )?instance of \w+$", "", error["msg"].removeprefix("Value error, "))
    reason = reason[0].lower() + reason[1:]
    return f"got {shown(error['input'])}; {reason.replace('input should', 'it should')}"


def shown(value: Any) -> str:
    """A value as it may stand in a message: cut to about a line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    try:
        return short.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"


# ---- YAML


def read_yaml(path: Path) -> Any:
    """The contents of a YAML file.

    Raises:
        Absent: when there is no such file.
        UserError: when it cannot be read, is too large or nested too deep, or is no YAML.
    """
    text = read_text(path, YAML_LARGE)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises ValueError when it is none, or has too many values or too deep ones."""
    try:
        _check_size(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # PyYAML's own, such as AttributeError for `!!timestamp soon` and KeyError for `!!bool maybe`
        raise ValueError("a value does not fit its tag") from error


def _check_size(text: str) -> None:
    """Refuse what PyYAML would take minutes or gigabytes for; aliases count as what they stand for, since `<<` copies that."""
    known: dict[str, tuple[int, int]] = {}
    within: list[list] = [[None, 0, 0]]  # of each collection that has begun: its anchor, and its values and depth so far
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        size, depth, anchor = 0, 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            within.append([anchor, 1, 0])
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size, depth = within.pop()
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in known:
                raise ValueError(f"no value before the alias {shown(anchor)} has that name")
            size, depth = known[anchor]
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        if size:
            known[anchor] = size, depth
            within[-1][1] += size
            within[-1][2] = max(within[-1][2], depth + 1)
        if sum(each[1] for each in within) > YAML_NODES:
            raise ValueError(f"it has more than {YAML_NODES:,} values, aliases written out")
        if len(within) + within[-1][2] > YAML_DEPTH:
            raise ValueError(f"it is nested more than {YAML_DEPTH - 1} deep")
