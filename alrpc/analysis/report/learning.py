"""Figures of the learning curves: losses by step, scores of the exits by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alrpc.analysis.report.chart import ALL_POINTS, HEIGHT, POINTS, SMALL, PageFigure, frame_axes, thinned
from alrpc.analysis.report.svg import ACCENT, SOFT, css, draw_svg, ramp
from alrpc.analysis.rundata import Run
from alrpc.analysis.scores import about_interval, bounds, limit_scores

NAMED = 10  # curves that a legend names one by one


def learning(run: Run, name: str) -> list[PageFigure]:
    """A figure of each loss by step, with a curve per component, and one of the scores by epoch, with a curve per exit."""
    figures = []
    for kind in run.loss_names:
        curves = {
            component: [(step, losses[kind]) for step, losses in rows if losses.get(kind) is not None]
            for component, rows in run.losses.items()
        }
        curves = {component: points for component, points in curves.items() if points}
        if curves:
            what = f"{kind} loss of each component, by step"
            figures.append(
                _curves(
                    f"{name}-{kind}", f"{kind.capitalize()} loss", what, curves, "step", logarithmic=True, kept=run.losses_every
                )
            )
    if run.curve:
        figures.append(_exits(run, f"{name}-exits"))
    for number, (metric, values) in enumerate(run.measured.items(), 1):
        exits = {
            exit: [(epoch, value[exit - 1]) for epoch, value in sorted(values.items())] for exit in _common(values.values())
        }
        title = f"{run.split.capitalize()} {metric}{' of every exit' if len(exits) > 1 else ''}"
        figures.append(_curves(f"{name}-metric-{number}", title, f"{title}, by epoch", exits, "epoch", last=True))
    return figures


def _common(scores: Iterable[list[float]]) -> range:
    """The numbers of the exits that all of these scores have."""
    return range(1, 1 + min(map(len, scores)))


def _exits(run: Run, name: str) -> PageFigure:
    """The score of every exit by epoch, with a band for the interval of the last one."""
    numbers = _common(scores for _, _, scores in run.curve)
    exits = {exit: [(epoch, scores[exit - 1]) for _, epoch, scores in run.curve] for exit in numbers}
    title = f"{run.split.capitalize()} {run.metric}{' of every exit' if len(exits) > 1 else ''}"
    limits = bounds(run.metric, [score for _, score in exits[max(exits)]], run.evaluated_samples)
    ends = [score for points in exits.values() for _, score in points] + [end for limit in limits or () for end in limit]

    def add(axes: Axes) -> None:
        if limits:
            epochs = [epoch for epoch, _ in exits[max(exits)]]
            axes.fill_between(epochs, *limits, color=ACCENT, alpha=0.16, linewidth=0)
        limit_scores(axes, ends, run.chance, SOFT)

    note = f"band: {about_interval(run.evaluated_samples)}" if limits else ""
    return _curves(name, title, f"{title}, by epoch", exits, "epoch", last=True, add=add, note=note)


def _curves(
    name: str,
    title: str,
    label: str,
    curves: dict[int, list[tuple[float, float]]],
    across: str,
    logarithmic: bool = False,
    last: bool = False,
    kept: int = 1,
    add: Callable[[Axes], None] | None = None,
    note: str = "",
) -> PageFigure:
    """A figure with a line for each component or exit, coloured by depth.

    Args:
        last: whether the lines are of exits, of which the last one is the network's own and has the accent colour.
        kept: of how many points of the run the curves have one.
        add: draws what else belongs into the axes.
    """
    most = min(POINTS, ALL_POINTS // len(curves))
    every = max(-(-len(points) // most) for points in curves.values())
    colours = {number: ramp(place, len(curves)) for place, number in enumerate(curves)}
    if last:
        colours[max(curves)] = ACCENT
    values = [value for points in curves.values() for _, value in points]
    wide_range = logarithmic and min(values) > 0 and max(values) > 10 * min(values)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, points in curves.items():
            chosen = thinned(points, every)
            marker = {"marker": "o", "markersize": 3.5} if len(chosen) <= 12 else {}
            heavy = 2.4 if last and number == max(curves) else 1.5
            axes.plot(*zip(*chosen, strict=True), color=colours[number], linewidth=heavy, **marker)
        if wide_range:
            axes.set_yscale("log")
        if add is not None:
            add(axes)
        frame_axes(axes, across)

    thing = "exit" if last else "component"
    numbers = list(curves) if len(curves) <= NAMED else [*list(curves)[:: -(-len(curves) // 6)][:-1], max(curves)]
    legend = []
    for number in numbers:
        score = f": {curves[number][-1][1]:.4f}" if last and len(numbers) == len(curves) else ""
        legend.append((css(colours[number]), f"{thing if number == numbers[0] else ''} {number}{score}".strip()))
    notes = [note] if note else []
    notes += ["logarithmic"] if wide_range else []
    notes += [f"every {every * kept}th of the points"] if every * kept > 1 else []
    return PageFigure(
        name, title, draw_svg(name, label, (SMALL, HEIGHT), draw), 1, legend if len(curves) > 1 else [], ", ".join(notes)
    )
