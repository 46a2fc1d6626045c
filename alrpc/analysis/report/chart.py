"""The class, the sizes and the axes that all figures of the page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from alrpc.analysis.drawable import plain
from alrpc.analysis.report.svg import ACCENT, INK

SMALL, MIDDLE, WIDE = 400, 780, 1160  # widths of figures: one, two or three columns of the page
HEIGHT, ROW = 250, 30  # heights of a chart, and of a row of bars
POINTS, ALL_POINTS = 500, 20_000  # most points of a curve, and of all curves of a chart; more are thinned
GIB, MIB = 1 << 30, 1 << 20


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page, with its title, legend and note."""

    name: str
    """Unique within the page."""
    title: str
    svg: Markup
    columns: int
    """Width in columns of the page, 1 to 3."""
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Each colour, as CSS, and its meaning."""
    note: str = ""


def frame_axes(axes: Axes, across: str) -> None:
    """Format the axes of a chart whose horizontal axis is `across`."""
    axes.set_xlabel(across)
    counts = across in ("epoch", "step", "exit", "component")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=counts))
    left, right = axes.get_xlim()
    if counts and right - left < 1:  # there is only one
        axes.set_xlim(round(left) - 0.5, round(left) + 0.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == round(value) else f"{value:g}")
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.minorticks_off()


def name_rows(axes: Axes, names: Sequence[str], pointed_out: Sequence[bool]) -> None:
    """Format the axes of horizontal bars, one row per name; those pointed out have the accent colour."""
    axes.set_yticks(range(len(names)), [*map(plain, names)])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    for tick, is_one in zip(axes.get_yticklabels(), pointed_out, strict=True):
        tick.set(color=ACCENT if is_one else INK, fontweight="bold" if is_one else "normal")


def thinned(points: list, every: int) -> list:
    """Every second, third, … of the points, and the last one."""
    return [*points[:-1:every], points[-1]] if points else []
