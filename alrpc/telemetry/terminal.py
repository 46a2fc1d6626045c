"""Shows a run that is under way: a live view on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from alrpc.events import Event, Slow, Unwritten
from alrpc.telemetry.bottleneck import find_bottleneck, share
from alrpc.telemetry.progress import Progress, StageProgress
from alrpc.timing import STATES, WORKING

FRAME = 0.15  # seconds between two updates of the live view
BAR = 40  # characters of a stage's time bar
LOOKS = {
    "forward": ("█", "green"),
    "backward": ("▓", "cyan"),
    "update": ("█", "blue"),
    "handling": ("▒", "white"),
    "checkpoint": ("▓", "magenta"),
    "waiting_to_receive": ("░", "bright_black"),
    "waiting_to_send": ("▒", "yellow"),
    "testing": ("▓", "bright_blue"),
}


@contextmanager
def show(progress: Progress, quiet: bool, console: Console) -> Iterator[Callable[[Event], None]]:
    """Show a run's progress; yields the function to call after each event."""
    if quiet:
        yield lambda event: None
    elif console.is_terminal:
        with _live(progress, console) as refresh:
            yield refresh
    else:
        yield _plain(progress, console)


@contextmanager
def _live(progress: Progress, console: Console) -> Iterator[Callable[[Event], None]]:
    drawn = 0.0
    with Live(_view(progress), console=console, auto_refresh=False) as live:

        def refresh(event: Event) -> None:
            nonlocal drawn
            if time.monotonic() - drawn > FRAME:
                live.update(_view(progress), refresh=True)
                drawn = time.monotonic()

        try:
            yield refresh
        finally:
            live.update(_view(progress), refresh=True)


def _plain(progress: Progress, console: Console) -> Callable[[Event], None]:
    """Print a line for the job, then one for each epoch that is complete."""
    shown = -1

    def say(event: Event) -> None:
        nonlocal shown
        if isinstance(event, (Unwritten, Slow)):
            line = progress.failures[-1] if isinstance(event, Unwritten) else progress.slow[event.stage]
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
            line = f"epoch {shown}/{progress.epochs}  {progress.metric} of exits {exits}  {name} losses {losses}"
            console.print(f"{line}  {progress.rate():,.0f} samples/s", soft_wrap=True, highlight=False)

    return say


def _first_losses(of_components: dict[int, dict[str, float]]) -> tuple[str, str]:
    """The name of the objective's first loss, and its values in all components."""
    name = next(iter(next(iter(of_components.values()))))
    return name, " ".join(f"{losses[name]:.4g}" for _, losses in sorted(of_components.items()))


def _view(progress: Progress) -> Group:
    packets = [Text(f"packets between stages: {progress.packets}", style="dim")] if progress.packets else []
    components = [_component_table(progress)] if progress.losses else []
    slow = [Text(what, style="yellow") for what in progress.slow.values()]
    failures = [Text(progress.failures[-1], style="red")] if progress.failures else []
    _, what = find_bottleneck(*progress.work())
    bottleneck = [Text(what, style="yellow" if what.startswith("bottleneck") else "dim")] if what else []
    return Group(
        _headline(progress), _stage_table(progress), *_legend(progress), *bottleneck, *packets, *components, *slow, *failures
    )


def _headline(progress: Progress) -> Table:
    line = Table.grid(padding=(0, 1))
    if not progress.fed:
        line.add_row(Text(progress.title, style="bold"), Text("starting the stages and reading the data"))
        return line
    rate = progress.rate()
    per_step = progress.samples / progress.micro_batches
    left = (progress.steps - progress.step) * per_step / rate if rate else 0
    line.add_row(
        Text(progress.title, style="bold"),
        Text(f"epoch {min(progress.step // progress.micro_batches + 1, progress.epochs)}/{progress.epochs}"),
        ProgressBar(total=progress.steps, completed=progress.step, width=30),
        Text(f"{progress.step:,}/{progress.steps:,} steps"),
        Text(f"{rate:,.0f} samples/s"),
        Text(f"{int(left) // 60}:{int(left) % 60:02d} left"),
    )
    return line


def _stage_table(progress: Progress) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("stage", "components", "device"):
        table.add_column(name)
    for name in ("works", "in flight", "memory"):
        table.add_column(name, justify="right")
    table.add_column("its time")
    for number, stage in progress.stages.items():
        busy = f"{share(stage.seconds, *WORKING):.0%}" if any(stage.seconds.values()) else ""
        memory = f"{stage.peak_memory / (1 << 20):,.0f} MiB" if stage.peak_memory else ""
        in_flight = "" if stage.in_flight is None else str(stage.in_flight)
        table.add_row(str(number), _components(stage), stage.device, busy, in_flight, memory, _time_bar(stage))
    return table


def _legend(progress: Progress) -> list[Text]:
    """The legend of the bars, for the states that occur."""
    seen = [state for state in STATES if any(stage.seconds.get(state) for stage in progress.stages.values())]
    marks = (Text(LOOKS[state][0], style=LOOKS[state][1]) + Text(f" {state.replace('_', ' ')}", style="dim") for state in seen)
    return [Text("  ").join(marks)] if seen else []


def _time_bar(stage: StageProgress) -> Text:
    total = sum(stage.seconds.values())
    if not total:
        return Text("")
    bar, filled = Text(), 0
    shares = {state: stage.seconds[state] / total for state in STATES}
    reached = 0.0
    for state, part in shares.items():
        reached += part
        width = round(reached * BAR) - filled
        mark, colour = LOOKS[state]
        bar.append(mark * width, style=colour)
        filled += width
    return bar


def _component_table(progress: Progress) -> Table:
    epoch = max(progress.evaluations, default=0)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    accuracy = f"{progress.metric} of its exit" + (f" (epoch {epoch})" if epoch else "")
    latest: dict[int, dict[str, float]] = {}
    for of_epoch in progress.losses.values():
        latest.update(of_epoch)
    for name in ("component", *(f"{name} loss" for name in next(iter(latest.values()))), accuracy):
        table.add_column(name, justify="right")
    for number, losses in sorted(latest.items()):
        score = _score(progress.evaluations[epoch][number - 1], progress.metric) if epoch else ""
        table.add_row(str(number), *(f"{value:.5g}" for value in losses.values()), score)
    return table


def _components(stage: StageProgress) -> str:
    numbers = stage.components
    if not numbers:
        return ""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _score(value: float, metric: str) -> str:
    return f"{value:.4f}" if metric == "accuracy" else f"{value:.5g}"
