"""Figures of several runs, or of several methods, side by side."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alrpc.analysis.comparison.plots import LOOKS, look
from alrpc.analysis.report.chart import HEIGHT, POINTS, ROW, SMALL, PageFigure, frame_axes, name_rows, thinned
from alrpc.analysis.report.svg import FONT, INK, SOFT, css, draw_svg, ramp
from alrpc.analysis.rundata import Comparison, Run, labels
from alrpc.analysis.scores import about_interval, bounds, limit_scores


@dataclass(frozen=True)
class Series:
    """One of the things that are compared: a method with its rounds, or a run."""

    name: str
    colour: str
    curves: list[list[tuple[float, int, float]]]
    """For each round, its points: (seconds, epoch, score of the last exit)."""
    rates: list[float]
    """Training samples per second in each round."""
    split: str
    """The split that the scores are of: test or validation."""
    samples: int | None
    """Number of its samples; None where it is not known."""
    chance: float | None
    """The score that guessing has; None where it is not known."""


def series_of(comparison: Comparison) -> list[Series]:
    """A series for each method of a comparison."""
    found = []
    for place, row in enumerate(comparison.result["table"]):
        method = row["method"]
        runs = [run for run in comparison.result["runs"] if run["method"] == method]
        colour, _ = look(method, place)
        curves, rates = [run["curve"] for run in runs], [run["samples_per_second"] for run in runs]
        split = runs[-1].get("split", "test")  # what follows is not known of alrpc 0.1
        known = (runs[-1].get(name) for name in (f"{split}_samples", "chance"))
        found.append(Series(method, colour, curves, rates, split, *known))
    return found


def series_of_runs(runs: list[Run]) -> list[Series]:
    """A series for each run."""
    colours = [colour for colour, _ in LOOKS.values()]
    few = len(runs) <= len(colours)
    return [
        Series(
            label,
            colours[place] if few else ramp(place, len(runs)),
            [[(seconds, epoch, exits[-1]) for seconds, epoch, exits in run.curve]] if run.curve else [],
            [run.samples_per_second] if run.samples_per_second else [],
            run.split,
            run.evaluated_samples,
            run.chance,
        )
        for place, (run, label) in enumerate(zip(runs, labels(runs), strict=True))
    ]


def side_by_side(series: list[Series], metric: str, name: str) -> list[PageFigure]:
    """Figures of the last exit's score by epoch and by seconds, and of the throughput."""
    legend = [(css(each.colour), each.name) for each in series]
    several = any(len(each.curves) > 1 for each in series)
    note = "the mean, and each round faintly" if several else ""
    bands = [_band(each, metric) for each in series]
    if any(bands):
        note = "; ".join(filter(None, (note, f"band: {about_interval()}")))
    ends = [point[2] for each in series for curve in each.curves for point in curve]
    ends += [end for band in bands if band for limit in band for end in limit]
    chance = next((each.chance for each in series), None)
    figures = []
    what = f"{' or '.join(sorted({each.split for each in series}))} {metric}".capitalize()
    for index, across in ((1, "epoch"), (0, "seconds")):
        title = f"{what} by {across}"

        def draw(figure: Figure, index: int = index, across: str = across) -> None:
            axes = figure.subplots()
            for each, band in zip(series, bands, strict=True):
                if band:
                    axes.fill_between([p[index] for p in each.curves[0]], *band, color=each.colour, alpha=0.12, linewidth=0)
                for curve in each.curves if len(each.curves) > 1 else ():
                    axes.plot([p[index] for p in curve], [p[2] for p in curve], color=each.colour, alpha=0.3, linewidth=1)
                mean = thinned(_mean(each.curves), -(-len(min(each.curves, key=len, default=[])) // POINTS))
                marker = {"marker": "o", "markersize": 3.5} if len(mean) <= 12 else {}
                axes.plot([p[index] for p in mean], [p[2] for p in mean], color=each.colour, linewidth=2, **marker)
            limit_scores(axes, ends, chance, SOFT)
            frame_axes(axes, across)

        own = f"{name}-by-{across}"
        figures.append(PageFigure(own, title, draw_svg(own, title, (SMALL, HEIGHT), draw), 1, legend, note))
    timed = [each for each in series if each.rates]
    if timed:

        def draw_rates(figure: Figure) -> None:
            axes = figure.subplots()
            rates = [statistics.median(each.rates) for each in timed]
            most = max(rate for each in timed for rate in each.rates)
            axes.barh(range(len(timed)), rates, height=0.66, color=[each.colour for each in timed])
            for row, each in enumerate(timed):
                axes.text(max(each.rates) + 0.025 * most, row, f"{rates[row]:,.0f}", va="center", fontsize=FONT - 1)
                if len(each.rates) > 1:
                    axes.scatter(each.rates, [row] * len(each.rates), color=INK, s=9, zorder=3)
            name_rows(
                axes, [each.name if len(each.name) <= 22 else f"{each.name[:21]}…" for each in timed], [False] * len(timed)
            )
            axes.set_xlim(0, most * 1.2)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter("{x:,.0f}")

        own = f"{name}-throughput"
        svg = draw_svg(own, "training samples a second", (SMALL, max(HEIGHT, 46 + ROW * len(timed))), draw_rates)
        figures.append(
            PageFigure(own, "Training samples a second", svg, 1, [], "median, and each round as a dot" if several else "")
        )
    return figures


def _band(series: Series, metric: str) -> tuple[list[float], list[float]] | None:
    """The limits of the scores' intervals in a single round; None for several, which are drawn themselves, or if not known."""
    return bounds(metric, [score for _, _, score in series.curves[0]], series.samples) if len(series.curves) == 1 else None


def _mean(curves: list[list[tuple[float, int, float]]]) -> list[tuple[float, int, float]]:
    """The mean curve over the rounds, for the epochs that all of them have."""
    return [
        (statistics.fmean(p[0] for p in points), points[0][1], statistics.fmean(p[2] for p in points))
        for points in zip(*curves, strict=False)
    ]
