"""Shows a run that is under way: a live view on a terminal, one line per epoch elsewhere.

The live view is plain ASCII and folds to the terminal's width, so that it reads the same on every terminal, with colours or not.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alrpc.events import Checkpoint, Event, Losses, Slow
from alrpc.telemetry.bottleneck import share
from alrpc.telemetry.progress import Progress, StageProgress
from alrpc.timing import STATES, WORKING

FRAME = 0.15  # seconds between two updates of the live view
BAR, LEAST_BAR = 40, 16  # most characters of a stage's time bar, and the least before columns beside it are left out
STEPS_BAR = 30  # most characters of the bar of the steps
GAP = 2  # characters between columns, and between parts of a line
HEADING = 12  # characters at which a heading is folded where the table is too wide
DISPENSABLE = ("memory", "device", "in flight", "components")  # columns beside the time bars, the first to be left out first
LOOKS = {  # each state's mark, which differs without its colours
    "forward": ("F", "black on green"),
    "backward": ("B", "black on cyan"),
    "update": ("U", "white on blue"),
    "handling": ("H", "black on white"),
    "checkpoint": ("C", "white on magenta"),
    "waiting_to_receive": (".", "bright_black"),
    "waiting_to_send": (">", "yellow"),
    "testing": ("T", "black on bright_blue"),
}


@contextmanager
def show(progress: Progress, quiet: bool, console: Console, verbose: bool = False) -> Iterator[Callable[[Event], None]]:
    """Show a run's progress; yields the function to call after each event."""
    if quiet:
        yield lambda event: None
    elif console.is_terminal and not verbose:
        with _live(progress, console) as refresh:
            yield refresh
    else:
        say = _plain(progress, verbose, console)
        yield say
        say(Event())  # what the end of the loggers has added


@contextmanager
def _live(progress: Progress, console: Console) -> Iterator[Callable[[Event], None]]:
    drawn = 0.0
    with Live(_view(progress, console.width), console=console, auto_refresh=False) as live:

        def refresh(event: Event) -> None:
            nonlocal drawn
            if time.monotonic() - drawn > FRAME:
                live.update(_view(progress, console.width), refresh=True)
                drawn = time.monotonic()

        try:
            yield refresh
        finally:
            live.update(_view(progress, console.width), refresh=True)


def _plain(progress: Progress, verbose: bool, console: Console) -> Callable[[Event], None]:
    """Print a line for the job, then one for each epoch that is complete; if verbose, also for all losses and checkpoints."""
    shown, told, link = -1, 0, ""

    def say(event: Event) -> None:
        nonlocal shown, told, link
        lines = [_describe(event)] if verbose and isinstance(event, (Losses, Checkpoint)) else []
        lines += progress.failures[told:]  # which the files may not be able to tell
        told = len(progress.failures)
        if isinstance(event, Slow):
            lines.append(progress.slow[event.stage])
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)
        if shown < 0 and progress.ready:
            shown = progress.start // progress.micro_batches
            stages = progress.stages.items()
            places = ", ".join(f"stage {number}: {_components(stage)} on {stage.device}" for number, stage in stages)
            job = f"{progress.samples} samples, {progress.micro_batches} micro-batches an epoch"
            console.print(f"{progress.title}: {job}; components of {places}", soft_wrap=True, highlight=False)
            if progress.packets:
                console.print(f"packets between stages: {progress.packets}", soft_wrap=True, highlight=False)
        while 0 <= shown < progress.epoch:
            shown += 1
            name, losses = _first_losses(progress.losses[shown])
            exits = " ".join(_score(value, progress.metric) for value in progress.evaluations[shown])
            line = f"epoch {shown}/{progress.epochs}  {progress.score} of exits {exits}  {name} losses {losses}"
            for metric, values in progress.metrics.get(shown, {}).items():
                line += f"  {metric} of exits {' '.join(f'{value:.4f}' for value in values)}"
            console.print(f"{line}  {progress.rate():,.0f} samples/s", soft_wrap=True, highlight=False)
            if shown == 1 and (about := progress.explain_exits(shown)):
                console.print(about, soft_wrap=True, highlight=False)
            if not link and (link := progress.slow_link()):  # once
                console.print(link, soft_wrap=True, highlight=False)

    return say


def _describe(event: Losses | Checkpoint) -> str:
    if isinstance(event, Checkpoint):
        return f"step {event.step}  checkpoint complete"
    losses = "  ".join(f"{name} loss {'not finite' if loss is None else f'{loss:.4g}'}" for name, loss in event.losses.items())
    return f"step {event.step}  component {event.component}  {losses}"


def _first_losses(of_components: dict[int, dict[str, float]]) -> tuple[str, str]:
    """The name of the objective's first loss, and its values in all components."""
    name = next(iter(next(iter(of_components.values()))))
    return name, " ".join(f"{losses[name]:.4g}" for _, losses in sorted(of_components.items()))


def _view(progress: Progress, width: int) -> Group:
    packets = [Text(f"packets between stages: {progress.packets}", style="dim")] if progress.packets else []
    components = [_component_table(progress, width)] if progress.losses else []
    about = progress.explain_exits(max(progress.evaluations, default=0))
    exits = [Text(about, style="dim")] if about else []
    slow = [Text(what, style="yellow") for what in progress.slow.values()]
    failures = [Text(progress.failures[-1], style="red")] if progress.failures else []
    what = progress.bottleneck()
    bottleneck = [Text(what, style="yellow" if what.startswith("bottleneck") else "dim")] if what else []
    above = [*_headline(progress, width), _stage_table(progress, width), *_legend(progress, width)]
    return Group(*above, *bottleneck, *packets, *components, *exits, *slow, *failures)


def _fold(parts: Iterable[Text], width: int) -> list[Text]:
    """Set parts side by side, in as many lines of `width` characters as they need."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + GAP + part.cell_len <= width:
            lines[-1].append(" " * GAP).append(part)
        else:
            lines.append(part.copy())
    return lines


def _headline(progress: Progress, width: int) -> list[Text]:
    title = Text(progress.title, style="bold")
    if not progress.fed:
        return _fold([title, Text("starting the stages and reading the data")], width)
    rate = progress.rate()
    per_step = progress.samples / progress.micro_batches
    left = (progress.steps - progress.step) * per_step / rate if rate else 0
    epoch = min(progress.step // progress.micro_batches + 1, progress.epochs)
    length = min(STEPS_BAR, width)
    done = length * progress.step // progress.steps
    return _fold(
        [
            title,
            Text(f"epoch {epoch}/{progress.epochs}"),
            Text.assemble(("=" * done, "green"), ("-" * (length - done), "bright_black")),
            Text(f"{progress.step:,}/{progress.steps:,} steps"),
            Text(f"{rate:,.0f} samples/s"),
            Text(f"{int(left) // 60}:{int(left) % 60:02d} left"),
        ],
        width,
    )


def _table(columns: dict[str, list[str] | list[Text]], left: Iterable[str]) -> Table:
    """A table of columns that fit, by their headings; those in `left` are aligned to the left."""
    table = Table(box=None, padding=(0, GAP, 0, 0), header_style="dim", pad_edge=False)
    for heading in columns:
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True, overflow="crop")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _width(columns: dict[str, list[str]]) -> int:
    """The characters that these columns take, each with the gap after it."""
    return sum(max(map(len, (*heading.split("\n"), *cells))) + GAP for heading, cells in columns.items())


def _stage_table(progress: Progress, width: int) -> Table:
    """A row per stage; on a narrow terminal its bar is shorter, and the least important columns are left out."""
    stages = progress.stages.values()
    columns = {
        "stage": [str(number) for number in progress.stages],
        "components": [_components(stage) for stage in stages],
        "device": [stage.device for stage in stages],
        "works": [f"{share(stage.seconds, *WORKING):.0%}" if any(stage.seconds.values()) else "" for stage in stages],
        "in flight": ["" if stage.in_flight is None else str(stage.in_flight) for stage in stages],
        "memory": [f"{stage.peak_memory / (1 << 20):,.0f} MiB" if stage.peak_memory else "" for stage in stages],
    }
    for heading in DISPENSABLE:
        if width - _width(columns) < LEAST_BAR:
            del columns[heading]
    length = max(1, min(BAR, width - _width(columns)))
    bars = [_time_bar(stage, length) for stage in stages]
    return _table({**columns, "its time": bars}, ("stage", "components", "device", "its time"))


def _legend(progress: Progress, width: int) -> list[Text]:
    """The legend of the bars, for the states that occur."""
    seen = [state for state in STATES if any(stage.seconds.get(state) for stage in progress.stages.values())]
    return _fold((Text.assemble(LOOKS[state], (f" {state.replace('_', ' ')}", "dim")) for state in seen), width)


def _time_bar(stage: StageProgress, length: int) -> Text:
    total = sum(stage.seconds.values())
    if not total:
        return Text("")
    bar, filled = Text(), 0
    reached = 0.0
    for state in STATES:
        reached += stage.seconds[state] / total
        width = round(reached * length) - filled
        mark, colour = LOOKS[state]
        bar.append(mark * width, style=colour)
        filled += width
    return bar


def _component_table(progress: Progress, width: int) -> Table:
    """A row per component; on a narrow terminal its headings are folded, and then the last losses left out."""
    epoch = max(progress.evaluations, default=0)
    latest: dict[int, dict[str, float]] = {}
    for of_epoch in progress.losses.values():
        latest.update(of_epoch)
    losses = {
        f"{name} loss": [f"{of_component[name]:.5g}" for _, of_component in sorted(latest.items())]
        for name in next(iter(latest.values()))
    }
    score = f"{progress.score} of its exit" + (f" (epoch {epoch})" if epoch else "")
    scores = [_score(progress.evaluations[epoch][number - 1], progress.metric) if epoch else "" for number in sorted(latest)]
    metrics = {
        f"{name} of its exit": [f"{values[number - 1]:.4f}" for number in sorted(latest)]
        for name, values in progress.metrics.get(epoch, {}).items()
    }
    columns = {"component": [str(number) for number in sorted(latest)], **losses, **metrics, score: scores}
    if _width(columns) > width:
        columns = {textwrap.fill(heading, HEADING): cells for heading, cells in columns.items()}
    for heading in list(columns)[-2:0:-1]:
        if _width(columns) > width:
            del columns[heading]
    return _table(columns, ())


def _components(stage: StageProgress) -> str:
    numbers = stage.components
    if not numbers:
        return ""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _score(value: float, metric: str) -> str:
    return f"{value:.4f}" if metric.endswith("accuracy") else f"{value:.5g}"
