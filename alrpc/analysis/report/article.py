"""What the page is made of: articles of sections, which hold figures, tables and lines."""

from __future__ import annotations

from dataclasses import dataclass

from alrpc.analysis.report.chart import PageFigure

ALL = 1000  # for Table.words: all columns


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    heads: list[str]
    rows: list[list[str]]
    """The first cell of a row is its heading."""
    caption: str
    pointed_out: int | None = None
    """Index of the row to point out, if any."""
    words: int = 1
    """Number of columns, from the left, that hold words instead of numbers."""


@dataclass(frozen=True)
class Section:
    """A section of an article."""

    title: str
    figures: list[PageFigure]
    tables: list[Table]
    lines: list[str]


@dataclass(frozen=True)
class Article:
    """What the page shows about one run, or about several side by side."""

    name: str
    title: str
    below: str
    """Line below the title."""
    tiles: list[tuple[str, str, str]]
    """Key figures: name, value, and a remark."""
    notes: list[tuple[str, str]]
    """Remarks: a keyword and a sentence."""
    sections: list[Section]
    config: str
