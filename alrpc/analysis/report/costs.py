"""Figures of a run's costs: the time of each stage, the memory of each process, a timeline of a few steps."""

from __future__ import annotations

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alrpc.analysis.aligned import align_timings
from alrpc.analysis.report.chart import GIB, MIB, MIDDLE, ROW, SMALL, PageFigure, name_rows
from alrpc.analysis.report.svg import FONT, INK, UNIT, css, draw_svg
from alrpc.analysis.rundata import Run
from alrpc.analysis.timeline import AROUND, HELD, LANE, LOOKS, WIDTH, choose_window, draw_lanes, legend, numbers_mean
from alrpc.timing import STATES

SPANS = 2000  # most spans of a timeline that are drawn as vectors; more are drawn as pixels


def costs(run: Run, name: str) -> list[PageFigure]:
    """The time of each stage, by state, and the peak memory of each process."""
    figures = [_time(run, f"{name}-time")] if any(stage.total for stage in run.stages) else []
    return [*figures, _memory(run, f"{name}-memory")] if run.memory else figures


def _time(run: Run, name: str) -> PageFigure:
    stages = [stage for stage in run.stages if stage.total]
    states = [state for state in STATES if any(stage.seconds[state] for stage in stages)]
    worst, _ = run.bottleneck()

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
        name_rows(axes, [run.name_of(stage) for stage in stages], [stage.number == worst for stage in stages])
        axes.set_xlim(0, longest)
        axes.xaxis.set_major_formatter("{x:g} s")

    svg = draw_svg(name, "seconds of each stage in each state", (MIDDLE, 46 + ROW * len(stages)), draw)
    legend = [(css(LOOKS[state]), state.replace("_", " ")) for state in states]
    return PageFigure(name, f"Time of each {'stage' if run.engine == 'pipeline' else 'process'}", svg, 2, legend)


def _memory(run: Run, name: str) -> PageFigure:
    names, sizes = zip(*run.memory.items(), strict=True)
    large = max(sizes) >= GIB
    unit, of = ("GiB", GIB) if large else ("MiB", MIB)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bars = axes.barh(range(len(sizes)), [size / of for size in sizes], height=0.68, color="#0072b2")
        axes.bar_label(bars, fmt=f"{{:,.{2 if large else 0}f}}", padding=4, color=INK, fontsize=FONT - 1)
        name_rows(axes, names, [False] * len(names))
        axes.set_xlim(0, max(sizes) / of * 1.16)
        axes.xaxis.set_major_locator(MaxNLocator(4))

    gpu = any("cuda" in stage.device for stage in run.stages)
    note = "of a stage: what its GPU has allocated" if gpu else ""
    svg = draw_svg(name, f"peak memory of each process, {unit}", (SMALL, 46 + ROW * len(sizes)), draw)
    return PageFigure(name, f"Peak memory, {unit}", svg, 1, [], note)


def timeline(run: Run, name: str) -> PageFigure:
    """The timeline of a few steps in mid-training; raises UserError when the run has not kept their spans, or not yet."""
    window = choose_window(align_timings(run.directory))
    pixels = sum(map(len, window.lanes.values())) > SPANS
    height = (LANE * len(window.lanes) + AROUND - 0.9) * UNIT

    def draw(figure: Figure) -> None:
        scale, unit = (1000, "ms") if window.seconds < 2 else (1, "s")
        axes = figure.subplots()
        draw_lanes(window, axes, scale, window.seconds)
        axes.xaxis.set_major_formatter(f"{{x:g}} {unit}")
        axes.tick_params(labelsize=8, length=0)
        for bars in axes.collections:  # waits stay vectors: pixels would not follow the page from light to dark
            bars.set_rasterized(pixels and to_hex(bars.get_facecolor()[0]) not in (LOOKS["waiting_to_receive"], HELD))

    svg = draw_svg(f"{name}-timeline", "what each process did over time", (WIDTH * UNIT, height), draw)
    meanings = [(css(colour), meaning) for colour, meaning in legend([window])]
    note = f"{window.seconds * 1000:,.0f} ms, of which the stages' bubble takes {window.bubble():.0%}"
    note = "; ".join(filter(None, (note, numbers_mean(window))))
    return PageFigure(f"{name}-timeline", "Timeline of a few steps", svg, 3, meanings, note)
