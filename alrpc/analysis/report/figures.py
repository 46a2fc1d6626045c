"""The figures of a page: of a run, of its network's quality, and of several runs side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alrpc.analysis.aligned import align_timings
from alrpc.analysis.comparison.plots import LOOKS as METHODS
from alrpc.analysis.quality_plots import FEW, class_colours
from alrpc.analysis.report.svg import ACCENT, FONT, INK, LINE, SOFT, UNIT, css, draw_svg, ramp
from alrpc.analysis.rundata import Comparison, Run, labels
from alrpc.analysis.timeline import AROUND, LANE, LOOKS, WIDTH, choose_window, draw_lanes
from alrpc.timing import STATES

SMALL, MIDDLE, WIDE = 400, 780, 1160  # widths of figures: one, two or three columns of the page
HEIGHT, ROW = 250, 30  # of a chart, of a bar
POINTS, ALL_POINTS = 500, 20_000  # of a curve, of all curves of a chart: of more, every second, third, …
NAMED = 10  # curves that a legend names one by one
SPANS = 2000  # of a timeline; more are drawn as pixels
PANELS = 18  # projections
GIB, MIB = 1 << 30, 1 << 20


@dataclass(frozen=True)
class Plate:
    """A figure with what stands around it."""

    name: str
    """Its own in the page."""
    title: str
    svg: Markup
    columns: int
    """Of the page, that it is wide: 1 to 3."""
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Colour as CSS, and what it stands for."""
    note: str = ""


# ---- learning


def learning(run: Run, name: str) -> list[Plate]:
    """Losses of each component by step, scores of every exit by epoch."""
    plates = []
    for kind in run.loss_names:
        curves = {
            component: [(step, losses[kind]) for step, losses in rows if losses[kind] is not None]
            for component, rows in run.losses.items()
        }
        curves = {component: points for component, points in curves.items() if points}
        if curves:
            what = f"{kind} loss of each component, by step"
            plates.append(_curves(f"{name}-{kind}", f"{kind.capitalize()} loss", what, curves, "step", logarithmic=True))
    if run.curve:
        exits = {exit: [(epoch, scores[exit - 1]) for _, epoch, scores in run.curve] for exit in _exits(run)}
        title = f"Test {run.metric} of every exit" if len(exits) > 1 else f"Test {run.metric}"
        plates.append(_curves(f"{name}-exits", title, f"{title}, by epoch", exits, "epoch", last=True))
    return plates


def _exits(run: Run) -> range:
    return range(1, 1 + min(len(scores) for _, _, scores in run.curve))


def _curves(
    name: str,
    title: str,
    label: str,
    curves: dict[int, list[tuple[float, float]]],
    across: str,
    logarithmic: bool = False,
    last: bool = False,
) -> Plate:
    """A line for each component or exit, in the order of depth; `last`: the last one is the network's own."""
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
        _frame(axes, across)

    thing = "exit" if last else "component"
    numbers = list(curves) if len(curves) <= NAMED else [*list(curves)[:: -(-len(curves) // 6)][:-1], max(curves)]
    legend = []
    for number in numbers:
        score = f": {curves[number][-1][1]:.4f}" if last and len(numbers) == len(curves) else ""
        legend.append((css(colours[number]), f"{thing if number == numbers[0] else ''} {number}{score}".strip()))
    notes = ["logarithmic"] if wide_range else []
    notes += [f"every {every}th of the points"] if every > 1 else []
    return Plate(
        name, title, draw_svg(name, label, (SMALL, HEIGHT), draw), 1, legend if len(curves) > 1 else [], ", ".join(notes)
    )


def _frame(axes: Axes, across: str) -> None:
    axes.set_xlabel(across)
    counts = across in ("epoch", "step", "exit", "component")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=counts))
    left, right = axes.get_xlim()
    if counts and right - left < 1:  # there is but one
        axes.set_xlim(round(left) - 0.5, round(left) + 0.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == round(value) else f"{value:g}")
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.minorticks_off()


# ---- time and memory


def costs(run: Run, name: str) -> list[Plate]:
    """What each stage's time went into, and the peak memory of each process."""
    plates = []
    stages = [stage for stage in run.stages if stage.total]
    worst, _ = run.bottleneck()
    if stages:
        states = [state for state in STATES if any(stage.seconds[state] for stage in stages)]

        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            begins = [0.0] * len(stages)
            longest = max(stage.total for stage in stages)
            for state in states:
                seconds = [stage.seconds[state] for stage in stages]
                axes.barh(range(len(stages)), seconds, left=begins, height=0.68, color=LOOKS[state])
                for row, (stage, length) in enumerate(zip(stages, seconds, strict=True)):
                    if length > 0.055 * longest:
                        colour = {"waiting_to_receive": INK, "update": "#000000", "testing": "#000000"}.get(state, "#ffffff")
                        middle, share = begins[row] + length / 2, length / stage.total
                        axes.text(middle, row, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=FONT - 1)
                begins = [begin + length for begin, length in zip(begins, seconds, strict=True)]
            _rows(axes, [run.name_of(stage) for stage in stages], [stage.number == worst for stage in stages])
            axes.set_xlim(0, longest)
            axes.xaxis.set_major_formatter("{x:g} s")

        svg = draw_svg(f"{name}-time", "seconds of each stage in each state", (MIDDLE, 46 + ROW * len(stages)), draw)
        legend = [(css(LOOKS[state]), state.replace("_", " ")) for state in states]
        plates.append(
            Plate(f"{name}-time", f"Time of each {'stage' if run.engine == 'pipeline' else 'process'}", svg, 2, legend)
        )
    if run.memory:
        names, sizes = zip(*run.memory.items(), strict=True)
        large = max(sizes) >= GIB
        unit, of = ("GiB", GIB) if large else ("MiB", MIB)

        def draw_memory(figure: Figure) -> None:
            axes = figure.subplots()
            bars = axes.barh(range(len(sizes)), [size / of for size in sizes], height=0.68, color="#0072b2")
            axes.bar_label(bars, fmt=f"{{:,.{2 if large else 0}f}}", padding=4, color=INK, fontsize=FONT - 1)
            _rows(axes, names, [False] * len(names))
            axes.set_xlim(0, max(sizes) / of * 1.16)
            axes.xaxis.set_major_locator(MaxNLocator(4))

        gpu = any("cuda" in stage.device for stage in run.stages)
        note = "of a stage: what its GPU has allocated" if gpu else ""
        svg = draw_svg(f"{name}-memory", f"peak memory of each process, {unit}", (SMALL, 46 + ROW * len(sizes)), draw_memory)
        plates.append(Plate(f"{name}-memory", f"Peak memory, {unit}", svg, 1, [], note))
    return plates


def _rows(axes: Axes, names: Sequence[str], pointed_out: Sequence[bool]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    for tick, is_one in zip(axes.get_yticklabels(), pointed_out, strict=True):
        tick.set(color=ACCENT if is_one else INK, fontweight="bold" if is_one else "normal")


def timeline(run: Run, name: str) -> Plate:
    """A few steps, in mid-training if it has kept some; raises UserError when the run has not kept, or not yet, their moments."""
    window = choose_window(align_timings(run.directory))
    pixels = sum(map(len, window.lanes.values())) > SPANS
    height = (LANE * len(window.lanes) + AROUND - 0.9) * UNIT

    def draw(figure: Figure) -> None:
        scale, unit = (1000, "ms") if window.seconds < 2 else (1, "s")
        axes = figure.subplots()
        draw_lanes(window, axes, scale, window.seconds)
        axes.xaxis.set_major_formatter(f"{{x:g}} {unit}")
        axes.tick_params(labelsize=8, length=0)
        for bars in axes.collections:  # pixels do not change with the page from light to dark; waits are to
            bars.set_rasterized(pixels and to_hex(bars.get_facecolor()[0]) != LOOKS["waiting_to_receive"])

    svg = draw_svg(f"{name}-timeline", "what each process did over time", (WIDTH * UNIT, height), draw)
    seen = {span.state for spans in window.lanes.values() for span in spans}
    legend = [(css(colour), state.replace("_", " ")) for state, colour in LOOKS.items() if state in seen]
    note = f"{window.seconds * 1000:,.0f} ms, of which the stages' bubble takes {window.bubble():.0%}"
    return Plate(f"{name}-timeline", "Timeline of a few steps", svg, 3, legend, note)


# ---- quality


def quality(result: dict, name: str) -> list[Plate]:
    """What `alrpc inspect` has found."""
    components = result["components"]
    numbers = [component["component"] for component in components]
    plates = [
        _by_depth(
            f"{name}-quality", f"Test {result['metric']} by exit", "exit", numbers, {"": _of(components, result["metric"])}
        )
    ]
    if "confusion" not in result:
        return plates
    distances = {
        "inter / intra": _of(components, "ratio"),
        "inter-class": _of(components, "inter"),
        "intra-class": _of(components, "intra"),
    }
    plates.append(_by_depth(f"{name}-distances", "Distances of the activations", "component", numbers, distances))
    return [*plates, _confusion(f"{name}-confusion", result), _projections(f"{name}-projections", result)]


def _of(components: list[dict], what: str) -> list[float]:
    return [math.nan if component[what] is None else component[what] for component in components]


def _by_depth(name: str, title: str, across: str, numbers: list[int], lines: dict[str, list[float]]) -> Plate:
    looks = (("#0072b2", "o"), ("#009e73", "^"), ("#d55e00", "v"))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (colour, marker), values in zip(looks, lines.values(), strict=False):
            axes.plot(numbers, values, color=colour, marker=marker, markersize=5)
        if len(lines) > 1:
            axes.set_ylim(0, None)
        else:
            values = next(iter(lines.values()))
            room = max(0.15 * (max(values) - min(values)), 0.01 * max(values))  # one sample more or less is no cliff
            axes.set_ylim(min(values) - room, max(values) + room)
        _frame(axes, across)

    legend = [(css(colour), line) for (colour, _), line in zip(looks, lines, strict=False) if line]
    return Plate(name, title, draw_svg(name, f"{title}, {across} by {across}", (SMALL, HEIGHT), draw), 1, legend)


def _confusion(name: str, result: dict) -> Plate:
    """Colour is the share of the row, by its square root so that rare confusions show; numbers where there is room."""
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
        axes.set_xticks(range(classes), result["classes"], fontsize=size)
        axes.set_yticks(range(classes), result["classes"], fontsize=size)
        for y, row in enumerate(result["confusion"]):
            for x, count in enumerate(row):
                if count:
                    axes.text(x, y, count, ha="center", va="center", fontsize=size, color=INK)

    svg = draw_svg(name, "confusion matrix of the last exit", (SMALL, HEIGHT + 34), draw)
    return Plate(name, "Confusions of the last exit", svg, 1, [], "colour: √ of share")


def _projections(name: str, result: dict) -> Plate:
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
    return Plate(name, title, svg, 3, legend, "; ".join(notes))


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


# ---- side by side


@dataclass(frozen=True)
class Series:
    """What is compared: a method with its rounds, or one run."""

    name: str
    colour: str
    curves: list[list[tuple[float, int, float]]]
    """Of each round: seconds, epoch, score of the last exit."""
    rates: list[float]
    """Samples a second, of each round."""


def series_of(comparison: Comparison) -> list[Series]:
    found = []
    for row in comparison.result["table"]:
        method = row["method"]
        runs = [run for run in comparison.result["runs"] if run["method"] == method]
        colour = METHODS[method][0] if method in METHODS else "#555555"
        found.append(Series(method, colour, [run["curve"] for run in runs], [run["samples_per_second"] for run in runs]))
    return found


def series_of_runs(runs: list[Run]) -> list[Series]:
    colours = [colour for colour, _ in METHODS.values()]
    few = len(runs) <= len(colours)
    return [
        Series(
            label,
            colours[place] if few else ramp(place, len(runs)),
            [[(seconds, epoch, exits[-1]) for seconds, epoch, exits in run.curve]] if run.curve else [],
            [run.samples_per_second] if run.samples_per_second else [],
        )
        for place, (run, label) in enumerate(zip(runs, labels(runs), strict=True))
    ]


def side_by_side(series: list[Series], metric: str, name: str) -> list[Plate]:
    """The last exit's score by epoch and by seconds, and samples a second."""
    legend = [(css(each.colour), each.name) for each in series]
    several = any(len(each.curves) > 1 for each in series)
    note = "the mean, and each round faintly" if several else ""
    plates = []
    for index, across, title in ((1, "epoch", f"Test {metric} by epoch"), (0, "seconds", f"Test {metric} by seconds")):

        def draw(figure: Figure, index: int = index, across: str = across) -> None:
            axes = figure.subplots()
            for each in series:
                for curve in each.curves if len(each.curves) > 1 else ():
                    axes.plot([p[index] for p in curve], [p[2] for p in curve], color=each.colour, alpha=0.3, linewidth=1)
                mean = thinned(_mean(each.curves), -(-len(min(each.curves, key=len, default=[])) // POINTS))
                marker = {"marker": "o", "markersize": 3.5} if len(mean) <= 12 else {}
                axes.plot([p[index] for p in mean], [p[2] for p in mean], color=each.colour, linewidth=2, **marker)
            _frame(axes, across)

        own = f"{name}-by-{across}"
        plates.append(Plate(own, title, draw_svg(own, title, (SMALL, HEIGHT), draw), 1, legend, note))
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
            _rows(axes, [each.name if len(each.name) <= 22 else f"{each.name[:21]}…" for each in timed], [False] * len(timed))
            axes.set_xlim(0, most * 1.2)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter("{x:,.0f}")

        own = f"{name}-throughput"
        svg = draw_svg(own, "training samples a second", (SMALL, max(HEIGHT, 46 + ROW * len(timed))), draw_rates)
        plates.append(Plate(own, "Training samples a second", svg, 1, [], "median, and each round as a dot" if several else ""))
    return plates


def _mean(curves: list[list[tuple[float, int, float]]]) -> list[tuple[float, int, float]]:
    """Epoch by epoch, of those that all rounds have."""
    return [
        (statistics.fmean(p[0] for p in points), points[0][1], statistics.fmean(p[2] for p in points))
        for points in zip(*curves, strict=False)
    ]


def thinned(points: list, every: int) -> list:
    """Every so manyth of them, and the last."""
    return [*points[:-1:every], points[-1]] if points else []
