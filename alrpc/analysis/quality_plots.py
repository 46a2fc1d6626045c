"""The picture of a network's quality, quality.png."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alrpc.analysis.drawable import plain
from alrpc.analysis.scores import about_interval, bounds, limit_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import SubFigure

WIDTH, TOP, ROW, DOTS = (
    12,
    4,
    3.2,
    110,
)  # inches: width, height of the upper part, height of a row of projections; pixels per inch
FEW = 20  # most classes that colours distinguish and that are named one by one
COLUMNS = 4  # most projections in a row
ROOM = 6  # most values that are all written beside their points; otherwise only the first and the last are
TICKS = 12  # most components that are all numbered on an axis; otherwise every second, third, … is
SCORE, INTER, INTRA = "#0072b2", "#009e73", "#d55e00"


def draw(result: dict, path: Path) -> None:
    """Draw a result of `alrpc.analysis.quality.measure` as a PNG."""
    from matplotlib.figure import Figure

    components = result["components"]
    numbers = [component["component"] for component in components]
    title = f"{plain(result['run'])}, step {result['step']:,}: {result['samples']:,} of {result['test_samples']:,} test samples"
    if "confusion" not in result:
        figure = Figure(figsize=(6, TOP), layout="constrained")
        _draw_exits(figure.subplots(), numbers, result)
        figure.suptitle(title)
        figure.savefig(path, format="png", dpi=DOTS)
        return
    rows = -(-len(components) // COLUMNS)
    figure = Figure(figsize=(WIDTH, TOP + rows * ROW + 0.5), layout="constrained")
    figure.suptitle(title)
    upper, lower = figure.subfigures(2, 1, height_ratios=[TOP, rows * ROW])
    grid = upper.add_gridspec(2, 3)
    exits, confusion = upper.add_subplot(grid[:, 0]), upper.add_subplot(grid[:, 2])
    distances = upper.add_subplot(grid[0, 1])
    _draw_exits(exits, numbers, result)
    _draw_distances(distances, upper.add_subplot(grid[1, 1], sharex=distances), numbers, components)
    _draw_confusion(upper, confusion, result["confusion"], [*map(plain, result["classes"])])
    _draw_projections(lower, result, rows)
    figure.savefig(path, format="png", dpi=DOTS)


def _draw_exits(axes: Axes, numbers: list[int], result: dict) -> None:
    """Draw the score of each exit with its interval."""
    metric, samples = result["metric"], result["samples"]
    scores = [component[metric] for component in result["components"]]
    axes.plot(numbers, scores, color=SCORE, marker="o")
    limits = bounds(metric, scores, samples)
    if limits:
        axes.vlines(numbers, *limits, color=SCORE, linewidth=1.2)
    _mark(axes, numbers, scores, "{:.4f}")
    chance = 1 / len(result["classes"]) if "classes" in result else None
    limit_scores(axes, [*scores, *(end for limit in limits or () for end in limit)], chance, "#555555")
    axes.set_title("\n".join([f"{metric} by exit", *([f"bars: {about_interval(samples)}"] if limits else [])]), fontsize=10)
    axes.set(xlabel="exit", ylabel=f"test {metric}")
    _count(axes, numbers)


def _draw_distances(above: Axes, below: Axes, numbers: list[int], components: list[dict]) -> None:
    """Draw the distances by component, and below them their ratio, which has no unit; missing distances leave gaps."""
    of = {name: [_or_nan(component[name]) for component in components] for name in ("ratio", "inter", "intra")}
    above.plot(numbers, of["inter"], color=INTER, marker="^", linestyle="--", label="inter-class")
    above.plot(numbers, of["intra"], color=INTRA, marker="v", linestyle=":", label="intra-class")
    above.set_title("distances of the activations", fontsize=10)
    above.set_ylim(0, None)
    above.legend(frameon=False, fontsize=8)
    below.plot(numbers, of["ratio"], color="black", marker="o")
    _mark(below, numbers, of["ratio"], "{:.2f}")
    below.set(xlabel="component", ylabel="inter / intra", ylim=(0, None))
    for axes in (above, below):
        _count(axes, numbers)
    above.tick_params(labelbottom=False)


def _draw_confusion(figure: SubFigure, axes: Axes, confusion: list[list[int]], names: list[str]) -> None:
    """Colour each cell by the square root of its share of the row, so that rare confusions show; counts where there is room."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_title("confusions of the last exit", fontsize=10)
    axes.set(xlabel="predicted class", ylabel="class")
    if len(names) <= FEW:
        size = 8 if len(names) <= FEW // 2 else 5.5
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(labelsize=size, length=0)
        for y, row in enumerate(confusion):
            for x, count in enumerate(row):
                if count:
                    colour = "white" if shares[y][x] > 0.25 else "black"
                    axes.text(x, y, count, ha="center", va="center", fontsize=size, color=colour)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.05, 0.25, 0.5, 1], format="{x:.0%}")
    bar.set_label("share of the class")
    bar.outline.set_visible(False)


def _draw_projections(figure: SubFigure, result: dict, rows: int) -> None:
    from matplotlib.lines import Line2D

    components, labels, classes = result["components"], result["labels"], len(result["classes"])
    few = classes <= FEW
    size = min(12, max(2, 9000 / len(labels)))  # size of a dot in square points
    colours = class_colours(classes)
    panels = figure.subplots(rows, -(-len(components) // rows), squeeze=False).flatten()
    for axes, component in zip(panels, components, strict=False):
        x, y = zip(*component["coordinates"], strict=True)
        points = axes.scatter(x, y, c=labels, cmap=colours, vmin=-0.5, vmax=classes - 0.5, s=size, alpha=0.75, linewidths=0)
        share = f" ({component['explained']:.0%} of the variance)" if component["explained"] is not None else ""
        axes.set_title(f"component {component['component']}{share}", fontsize=10)
        axes.set(xticks=[], yticks=[])
        axes.margins(0.05)
        axes.set_box_aspect(1)
        for spine in axes.spines.values():
            spine.set_color("lightgrey")
    for axes in panels[len(components) :]:
        axes.set_visible(False)
    figure.suptitle({"pca": "activations by PCA", "tsne": "activations by t-SNE"}[result["projection"]])
    if few:
        handles = [Line2D([], [], marker="o", linestyle="", color=colours(label)) for label in range(classes)]
        figure.legend(handles, [*map(plain, result["classes"])], title="class", loc="outside right center", frameon=False)
    else:
        figure.colorbar(points, ax=panels.tolist(), label="class", fraction=0.02).solids.set_alpha(1)


def class_colours(classes: int) -> Colormap:
    """A colour for each class, or a continuous colour map for more than FEW classes."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    name = "tab10" if classes <= FEW // 2 else "tab20"
    return ListedColormap(colormaps[name].colors[:classes]) if classes <= FEW else colormaps["turbo"]


def _mark(axes: Axes, numbers: list[int], values: list[float], form: str) -> None:
    """Write values above their points, with an outline that keeps them legible on a line."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=3, foreground="white")]
    points = list(zip(numbers, values, strict=True))
    for x, y in points if len(points) <= ROOM else (points[0], points[-1]):
        if y == y:  # not NaN
            place = {"xy": (x, y), "xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
            axes.annotate(form.format(y), **place, fontsize=9, path_effects=outline, zorder=5)
    axes.margins(0.12, 0.18)


def _count(axes: Axes, numbers: list[int]) -> None:
    axes.set_xticks(numbers[:: -(-len(numbers) // TICKS)])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
