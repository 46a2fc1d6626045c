"""Figures of the network's quality, as `alrpc inspect` has measured it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alrpc.analysis.drawable import plain
from alrpc.analysis.quality_plots import FEW, class_colours
from alrpc.analysis.report.chart import HEIGHT, SMALL, WIDE, PageFigure, frame_axes, thinned
from alrpc.analysis.report.svg import FONT, INK, LINE, SOFT, css, draw_svg
from alrpc.analysis.scores import about_interval, bounds, limit_scores

PANELS = 18  # most projections that are shown
RATIO = "inter / intra"
EXITS = "#0072b2"


def quality(result: dict, name: str) -> list[PageFigure]:
    """The figures of the contents of quality.json."""
    components = result["components"]
    numbers = [component["component"] for component in components]
    figures = [_exits(f"{name}-quality", result, numbers)]
    if "confusion" not in result:
        return figures
    figures.append(_distances(f"{name}-distances", components, numbers))
    return [*figures, _confusion(f"{name}-confusion", result), _projections(f"{name}-projections", result)]


def _of(components: list[dict], what: str) -> list[float]:
    return [math.nan if component[what] is None else component[what] for component in components]


def _exits(name: str, result: dict, numbers: list[int]) -> PageFigure:
    """The score of each exit, with its interval."""
    metric = result["metric"]
    scores = _of(result["components"], metric)
    limits = bounds(metric, scores, result["samples"])
    chance = 1 / len(result["classes"]) if "classes" in result else None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(numbers, scores, color=EXITS, marker="o", markersize=5)
        if limits:
            axes.vlines(numbers, *limits, color=EXITS, linewidth=1.2)
        limit_scores(axes, [*scores, *(end for limit in limits or () for end in limit)], chance, SOFT)
        frame_axes(axes, "exit")

    title = f"Test {metric} by exit"
    note = f"bars: {about_interval(result['samples'])}" if limits else ""
    return PageFigure(name, title, draw_svg(name, title, (SMALL, HEIGHT), draw), 1, note=note)


def _distances(name: str, components: list[dict], numbers: list[int]) -> PageFigure:
    """The distances by component, and below them their ratio, which has no unit, on an axis of its own."""
    panels = (
        {"inter-class": ("inter", "#009e73", "^"), "intra-class": ("intra", "#d55e00", "v")},
        {RATIO: ("ratio", INK, "o")},
    )

    def draw(figure: Figure) -> None:
        for axes, lines in zip(figure.subplots(2, 1, sharex=True), panels, strict=True):
            for what, colour, marker in lines.values():
                axes.plot(numbers, _of(components, what), color=colour, marker=marker, markersize=5)
            axes.set_ylim(0, None)
            frame_axes(axes, "component")
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.label_outer()

    legend = [(css(colour), line) for lines in panels for line, (_, colour, _) in lines.items()]
    svg = draw_svg(name, f"distances of the activations, and below {RATIO}, by component", (SMALL, HEIGHT + 34), draw)
    return PageFigure(name, "Distances of the activations", svg, 1, legend, f"below: {RATIO}")


def _confusion(name: str, result: dict) -> PageFigure:
    """The confusion matrix, with counts where there is room.

    The colour of a cell is the square root of its share of the row, so that rare confusions show.
    """
    shares = [[count / max(1, sum(row)) for count in row] for row in result["confusion"]]
    classes = len(result["classes"])
    fading = LinearSegmentedColormap.from_list("fading", [(0.34, 0.58, 0.84, 0.0), (0.34, 0.58, 0.84, 0.9)])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.imshow(shares, cmap=fading, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        axes.set(xlabel="predicted class", ylabel="class")
        axes.spines[:].set_visible(True)
        size = FONT - 2 if classes <= FEW // 2 else FONT - 5
        axes.tick_params(length=0)
        if classes > FEW:
            return
        names = [*map(plain, result["classes"])]
        axes.set_xticks(range(classes), names, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
        for y, row in enumerate(result["confusion"]):
            for x, count in enumerate(row):
                if count:
                    axes.text(x, y, count, ha="center", va="center", fontsize=size, color=INK)

    svg = draw_svg(name, "confusion matrix of the last exit", (SMALL, HEIGHT + 34), draw)
    return PageFigure(name, "Confusions of the last exit", svg, 1, [], "colour: √ of share")


def _projections(name: str, result: dict) -> PageFigure:
    every = -(-len(result["components"]) // PANELS)
    components = thinned(result["components"], every)
    labels, classes = result["labels"], len(result["classes"])
    columns = min(6, len(components))
    rows = -(-len(components) // columns)
    side = WIDE / max(4, columns)
    colours = class_colours(classes)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, component in zip_longest(panels, components):
            if component is None:
                axes.set_visible(False)
                continue
            x, y = zip(*component["coordinates"], strict=True)
            size = min(12, max(2, 5000 / len(labels)))
            look = {"c": labels, "cmap": colours, "vmin": -0.5, "vmax": classes - 0.5, "s": size, "alpha": 0.8, "linewidths": 0}
            axes.scatter(x, y, rasterized=True, **look)
            share = f" ({component['explained']:.0%})" if component["explained"] is not None else ""
            axes.set_title(f"component {component['component']}{share}", loc="left", color=SOFT)
            axes.set(xticks=[], yticks=[])
            axes.margins(0.05)
            axes.set_box_aspect(1)
            axes.spines[:].set(visible=True, color=LINE)

    method = {"pca": "PCA", "tsne": "t-SNE"}[result["projection"]]
    title = f"Activations of each component in two dimensions, by {method}"
    svg = draw_svg(name, title, (side * columns, (side + 22) * rows), draw)
    legend = [(_hex(colours(label)), str(result["classes"][label])) for label in range(classes)] if classes <= FEW else []
    notes = ["a dot a sample, its colour the class"]
    notes += ["in brackets the share of the variance that is shown"] if result["projection"] == "pca" else []
    notes += [f"every {every}th component"] if every > 1 else []
    return PageFigure(name, title, svg, 3, legend, "; ".join(notes))


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])
