"""The timeline of a run: what each process did over time, as a picture and as shares of its time.

coordinator  ▏▏ ▏ ▏      feeds
stage 1      ██▓░██▓░    forward, backward, update, waits …
stage 2      ░██▓░██▓
             ├────────┤  one time axis, seconds
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path

from alrpc.analysis.aligned import Block, Span, Timings, align_timings, step_seconds
from alrpc.analysis.drawable import plain
from alrpc.errors import UsageError, UserError
from alrpc.events import ENGINES
from alrpc.telemetry.bottleneck import find_bottleneck
from alrpc.timing import STATES, WORKING

STEPS = 6  # training micro-batches in a picture
LOOKS = {  # colour-blind safe
    "forward": "#4477aa",
    "backward": "#228833",
    "update": "#ccbb44",
    "handling": "#888888",
    "checkpoint": "#aa3377",
    "waiting_to_receive": "#eeeeee",
    "waiting_to_send": "#ee6677",
    "testing": "#66ccee",
}
HELD = "#c9d3df"  # the coordinator's waiting to send: the window is full, as it is while the stages have enough to do
WIDTH, LANE, AROUND, DOTS = 11.0, 0.42, 1.5, 130  # width, lane height, margins: inches; resolution: pixels per inch
PASSES = ("forward", "backward")
EDGE = 0.05  # inches; the edges of a shorter bar are not drawn
CHARACTER = 0.075  # inches per character of a label


@dataclass(frozen=True)
class Window:
    """An interval of a run in which the spans of all its processes are known."""

    timings: Timings
    begin: float
    end: float
    lanes: dict[int, list[Span]]
    """For each stage, 0 for the coordinator, its spans, cut to the window."""
    on_gpu: dict[int, list[Span]]
    """For each stage on a GPU, the spans of that GPU."""
    labels: dict[tuple[int, int], str]
    """The step of each training micro-batch, by (stage, packet)."""

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def seconds_of(self, stage: int) -> dict[str, float]:
        """Seconds that a stage spent in each state; they add up to the window."""
        seconds = dict.fromkeys(STATES, 0.0)
        for span in self.lanes[stage]:
            seconds[span.state] += span.end - span.begin
        return seconds

    def work(self, stage: int) -> float:
        """The share of the window that a stage, or its GPU if it has one, works or evaluates."""
        if spans := self.on_gpu.get(stage):
            return sum(span.end - span.begin for span in spans) / self.seconds
        seconds = self.seconds_of(stage)
        return sum(seconds[state] for state in (*WORKING, "testing")) / self.seconds

    def bubble(self) -> float:
        """The share of all stages' time that they do not work."""
        stages = [stage for stage in self.lanes if stage]
        return 1 - sum(map(self.work, stages)) / len(stages)

    def bottleneck(self) -> tuple[int | None, str]:
        """The slowest stage and a sentence about it; (None, "") for a baseline, whose processes wait by schedule."""
        if self.timings.engine != "pipeline":
            return None, ""
        stages = [stage for stage in self.lanes if stage]
        components = {stage: self.timings.components_of(stage) for stage in stages}
        return find_bottleneck({stage: self.seconds_of(stage) for stage in stages}, components)


def choose_window(timings: Timings, step: int | None = None, steps: int = STEPS) -> Window:
    """Choose the part of a run to show.

    Args:
        step: the first micro-batch to show, from 0; None for the middle of training.
        steps: length of the window, in training micro-batches of the slowest stage.

    Raises:
        UserError: when the spans of that step were not kept.
    """
    trains = [[each for block in group[1] for each in block.packets if each.kind == "train"] for group in _groups(timings)]
    groups = [group for group, found in zip(_groups(timings), trains, strict=True) if found]
    if not groups:
        raise UserError(f"{timings.title}: no training step's moments are known of all stages")
    if step is None:
        group = groups[-2] if len(groups) > 2 else groups[-1]  # the last one drains the pipeline
        begin, end = _steady(group, steps)
    else:
        group = next((group for group in groups if _begin_of(group, step) is not None), None)
        if group is None:
            raise UsageError(f"--step: the moments of step {step} were not kept; those of {_steps_of(groups)} were")
        begin = _begin_of(group, step)
        end = begin + _length(group, steps)
    if end <= begin:
        raise UserError(f"{timings.title}: no two training steps follow each other in a block of moments, so no time is known")
    lanes = {stage: _cut((span for block in blocks for span in block.spans), begin, end) for stage, blocks in group.items()}
    packets = [(stage, each) for stage, blocks in group.items() for block in blocks for each in block.packets]
    labels = {(stage, each.number): str(each.step) for stage, each in packets if each.kind == "train"}
    on_gpu = {stage: _cut((span for block in blocks for span in block.device), begin, end) for stage, blocks in group.items()}
    return Window(timings, begin, end, lanes, on_gpu, labels)


def _groups(timings: Timings) -> list[dict[int, list[Block]]]:
    """Sequences of consecutive blocks that all stages have; in each, the blocks by stage, those of the coordinator included."""
    everywhere = set.intersection(*({b.number for b in timings.blocks if b.stage == stage} for stage in timings.stages))
    groups = []
    for _, run in groupby(enumerate(sorted(everywhere)), key=lambda pair: pair[1] - pair[0]):
        numbers = {number for _, number in run}
        group: dict[int, list[Block]] = {}
        for block in timings.blocks:
            if block.number in numbers:
                group.setdefault(block.stage, []).append(block)
        groups.append(group)
    return groups


def _length(group: dict[int, list[Block]], steps: int) -> float:
    """Seconds that the slowest stage takes for this number of steps."""
    return steps * max(step_seconds(block) for stage, blocks in group.items() if stage for block in blocks)


def _steady(group: dict[int, list[Block]], steps: int) -> tuple[float, float]:
    """The first window of this length in which all stages only train; otherwise the first in which all are known."""
    stages = [blocks for stage, blocks in group.items() if stage]
    ready, over = max(blocks[0].begin for blocks in stages), min(blocks[-1].end for blocks in stages)
    others = [
        (before.end, each.end)
        for blocks in stages
        for before, each in pairwise(each for block in blocks for each in block.packets)
        if each.kind != "train"
    ]
    length = _length(group, steps)
    for each in (each for block in group[1] for each in block.packets if each.kind == "train"):
        begin, end = each.begin, each.begin + length
        if begin >= ready and end <= over and not any(first < end and last > begin for first, last in others):
            return begin, end
    return ready, min(ready + length, over) if over > ready else ready + length


def _begin_of(group: dict[int, list[Block]], step: int) -> float | None:
    trains = (each for block in group[1] for each in block.packets if each.kind == "train")
    return next((each.begin for each in trains if each.step == step), None)


def _steps_of(groups: list[dict[int, list[Block]]]) -> str:
    of_groups = [[each.step for block in group[1] for each in block.packets if each.kind == "train"] for group in groups]
    return ", ".join(f"{steps[0]} to {steps[-1]}" for steps in of_groups)


def _cut(spans: Iterator[Span], begin: float, end: float) -> list[Span]:
    return [
        replace(span, begin=max(span.begin, begin), end=min(span.end, end))
        for span in spans
        if span.end > begin and span.begin < end
    ]


def describe(window: Window) -> str:
    """The caption of a picture: the shares of all stages' time, the bubble and the bottleneck."""
    of_stages = [window.seconds_of(stage) for stage in window.lanes if stage]
    shares = {state: sum(each[state] for each in of_stages) / (len(of_stages) * window.seconds) for state in STATES}
    parts = " · ".join(f"{state.replace('_', ' ')} {part:.1%}" for state, part in shares.items() if part >= 0.0005)
    _, bottleneck = window.bottleneck()
    return f"all stages: {parts}\nbubble {window.bubble():.1%}" + (f" · {bottleneck}" if bottleneck else "")


def draw(windows: list[Window], paths: list[Path]) -> None:
    """Write the picture to each path, in the format of its suffix; several windows share one time axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    heights = [LANE * len(window.lanes) + AROUND for window in windows]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    longest = max(window.seconds for window in windows)
    scale, unit = (1000, "ms") if longest < 2 else (1, "s")
    every = figure.subplots(len(windows), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for window, axes in zip(windows, every, strict=True):
        draw_lanes(window, axes, scale, longest)
        axes.set_xlabel(describe(window), fontsize=8, loc="left")
        title = " · ".join(filter(None, (window.timings.title, numbers_mean(window))))
        axes.set_title(plain(title), fontsize=10, loc="left")
    every[-1].xaxis.set_major_formatter(f"{{x:g}} {unit}")
    patches = [Patch(facecolor=colour, label=label) for colour, label in legend(windows)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=8)
    for path in paths:
        partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        figure.savefig(partial, dpi=DOTS)
        partial.rename(path)


def colour_of(stage: int, state: str) -> str:
    """The colour of a state in the lane of a stage, 0 for the coordinator, whose back-pressure is no sign of trouble."""
    return HELD if stage == 0 and state == "waiting_to_send" else LOOKS[state]


def legend(windows: list[Window]) -> list[tuple[str, str]]:
    """The colours of the states that occur, with their meanings."""
    seen = {colour_of(stage, span.state) for window in windows for stage, spans in window.lanes.items() for span in spans}
    states = [(colour, state.replace("_", " ")) for state, colour in LOOKS.items()]
    return [each for each in (*states, (HELD, "coordinator: window full")) if each[0] in seen]


def numbers_mean(window: Window) -> str:
    """What the numbers in the bars are, where they are more than the micro-batch."""
    if _is_cut(window):
        return "in the bars: part of the micro-batch"
    several = any(len(window.timings.components_of(stage)) > 1 for stage in window.lanes)
    return "in the bars: micro-batch · component" if several else ""


def _is_cut(window: Window) -> bool:
    """Whether a schedule cuts its micro-batches into parts."""
    return window.timings.engine not in ENGINES


def _label(window: Window, stage: int, span: Span, room: float) -> str:
    """The number in a forward or backward bar of `room` inches: of the micro-batch; or of the part into which a schedule cuts it.

    In a stage of several components it is micro-batch · component, or only the latter, or nothing, as there is room.
    """
    number = str(span.part) if _is_cut(window) else window.labels.get((stage, span.packet), "")
    labels = [number]
    if number and not _is_cut(window) and len(window.timings.components_of(stage)) > 1:
        labels = [f"{number}·{span.part}", f"·{span.part}"]
    return next((label for label in labels if room > CHARACTER * len(label)), "")


def draw_run(run: Path, picture: Path) -> bool:
    """Draw the timeline of a run in mid-training; returns False where the run was too short to have one."""
    try:
        window = choose_window(align_timings(run))
    except UserError:
        return False
    draw([window], [picture])
    return True


def draw_lanes(window: Window, axes, scale: float, longest: float) -> None:
    """Draw a lane for each process, as bars in the colours of LOOKS.

    Args:
        scale: units of the time axis per second.
        longest: length of the time axis in seconds.
    """
    stages = sorted(window.lanes)
    room = (WIDTH - 2.6) / longest  # inches a second
    for stage, host in window.lanes.items():
        gpu = window.on_gpu.get(stage, [])
        height = 0.3 if gpu else 0.8 if stage else 0.4  # a lower lane for the coordinator, which computes nothing
        _draw_bars(axes, window, stage, host, (stage - 0.4 if stage else stage - 0.2, height), scale, room)
        _draw_bars(axes, window, stage, gpu, (stage - 0.1, 0.5), scale, room)  # below the bars of the process
        for span in gpu or host:
            if span.state in PASSES and (label := _label(window, stage, span, (span.end - span.begin) * room)):
                middle = ((span.begin + span.end) / 2 - window.begin) * scale
                axes.text(middle, stage, label, ha="center", va="center", fontsize=7, color="white", clip_on=True)
    axes.set_yticks(stages, [_name(window.timings, stage) for stage in stages], fontsize=8)
    axes.set(ylim=(max(stages) + 0.5, min(stages) - 0.5), xlim=(0, longest * scale))
    for stage in stages:
        if stage:
            axes.text(
                1.005, stage, f"works {window.work(stage):.0%}", transform=axes.get_yaxis_transform(), va="center", fontsize=8
            )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


def _draw_bars(
    axes, window: Window, stage: int, spans: list[Span], place: tuple[float, float], scale: float, room: float
) -> None:
    """Draw the forward and backward passes with edges where they are wide enough, and the other states over them."""
    for state in (*PASSES, *(state for state in STATES if state not in PASSES)):
        of_state = [span for span in spans if span.state == state]
        wide = [state in PASSES and (span.end - span.begin) * room > EDGE for span in of_state]
        bars = [((span.begin - window.begin) * scale, (span.end - span.begin) * scale) for span in of_state]
        colour = colour_of(stage, state)
        axes.broken_barh(bars, place, facecolor=colour, edgecolor="white", linewidth=[0.5 * edge for edge in wide])


def _name(timings: Timings, stage: int) -> str:
    if not stage:
        return "coordinator"
    numbers = timings.components_of(stage)
    return f"{'stage' if timings.engine == 'pipeline' else 'process'} {stage}" + (
        f"\n({numbers[0]}-{numbers[-1]})" if len(numbers) > 1 else f"\n({numbers[0]})" if numbers else ""
    )
