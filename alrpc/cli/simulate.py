"""`alrpc simulate`."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alrpc.cli.options import Number, heavy_imports, json_option, plain_endings
from alrpc.errors import UsageError

if TYPE_CHECKING:
    from alrpc.analysis.stage_costs import StageCosts
    from alrpc.planning.simulation import Figures, Setting

STAGES, STAGE_MS, MESSAGE_MB = 8, 20.0, 1.0
MIB = 1 << 20
LEAST_MBIT = 1e-3
FORMATS = (".png", ".svg", ".pdf")


class Milliseconds(click.ParamType):
    """A number, or several separated by commas."""

    name = "MS[,MS…]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            numbers = []
        if not numbers or not all(1e-6 <= number <= 1e9 for number in numbers):
            self.fail(f"got {value!r}; give milliseconds above 0, such as 20 or 20,35,20.")
        return numbers


class Slow(click.ParamType):
    """STAGE=FACTOR."""

    name = "STAGE=FACTOR"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        stage, _, factor = value.partition("=")
        try:
            parsed = int(stage), float(factor)
        except ValueError:
            parsed = 0, math.nan
        if not (parsed[0] >= 1 and 1e-3 <= parsed[1] <= 1e3):
            self.fail(f"got {value!r}; give the number of a stage and a factor, such as 4=1.5.")
        return parsed


def number(name: str, low: float, high: float, default: float | None, help: str):
    """An option with a number within bounds."""
    shown = default is not None
    return click.option(name, type=Number(low, high), default=default, show_default=shown, metavar="X", help=help)


@click.command(short_help="Simulate pipelines over given links, up to thousands of stages.")
@click.option("--stages", type=click.IntRange(1, 10_000), help=f"The number of stages.  [default: {STAGES}]")
@click.option(
    "--stage-ms", type=Milliseconds(), help=f"What a micro-batch takes each stage, or all alike.  [default: {STAGE_MS:g}]"
)
@click.option(
    "--component-ms", type=Milliseconds(), help="What it takes each component; split over the stages as `alrpc plan` does."
)
@click.option(
    "--from",
    "source",
    metavar="PATH",
    type=click.Path(readable=False, path_type=Path),
    help="Take the stages from a file with the JSON of `alrpc plan`, or from the directory of a run.",
)
@number(
    "--message-mb", 0, 1e6, None, f"The size of a packet in units of 2²⁰ bytes.  [default: that of the plan, or {MESSAGE_MB:g}]"
)
@number(
    "--gradient-mb", 0, 1e6, None, "The size of a stage's gradients, for data parallel training.  [default: that of the plan]"
)
@number("--rate-mbit", 0, 1e9, 10_000, "The bandwidth of a link, in each direction, in Mbit/s; 0 for no limit.")
@number("--delay-ms", 0, 1e6, 0.1, "The latency of a link, one way.")
@number(
    "--jitter", 0, 3, None, "The standard deviation of times and latencies over their means.  [default: that of the run, or 0]"
)
@click.option("--slow", type=Slow(), help="A stage whose device is so many times slower, such as 4=1.5.")
@click.option("--window", type=click.IntRange(1, 1024), default=2, show_default=True, help="As pipeline.window.")
@click.option(
    "--micro-batches",
    type=click.IntRange(1, 100_000),
    help="How many there are between two flushes of gpipe and 1f1b.  [default: 4 for each stage]",
)
@click.option(
    "--packets",
    type=click.IntRange(4, 1_000_000),
    help="How many micro-batches are trained on in all.  [default: 1000, 10000 with jitter, at least 4 for each stage]",
)
@click.option(
    "--picture",
    metavar="FILE",
    type=click.Path(readable=False, path_type=Path),
    help="Also draw what becomes of it with other stages, latencies, bandwidths and windows, as PNG, SVG or PDF.",
)
@json_option
def simulate(
    stages: int | None,
    stage_ms: list[float] | None,
    component_ms: list[float] | None,
    source: Path | None,
    window: int,
    picture: Path | None,
    as_json: bool,
    **others: Any,
) -> None:
    """Simulate pipelines over stages and links that you do not have: this engine beside those of back-propagation.

    Nothing is run: all figures are SIMULATED, exactly, from what each stage and each link takes. `al` is this engine, whatever the
    local objective; gpipe, 1f1b, pipedream and ddp are simulated at their best, and as if their work were the same. docs/scaling.md
    says what is modelled, and how near that comes to what was measured.

    \b
    Thousands of stages; links of 50 ms; one device that is 1.5 times slower, and a picture:
        alrpc simulate --stages 4096
        alrpc simulate --stages 8 --delay-ms 50 --window 16
        alrpc simulate --stages 64 --slow 4=1.5 --picture simulated.png
    A network of your own, as planned on this machine, or as it ran:
        alrpc plan --config transformer-8 --json > plan.json
        alrpc simulate --from plan.json --stages 3 --rate-mbit 100
        alrpc simulate --from runs/mnist
    """
    with plain_endings():
        if sum(each is not None for each in (stage_ms, component_ms, source)) > 1:
            raise UsageError("--stage-ms, --component-ms, --from: got more than one; each says what the stages take; give one")
        if picture is not None and (picture.suffix not in FORMATS or not picture.absolute().parent.is_dir()):
            raise UsageError(
                f"--picture: got {picture}; give a file in a directory that exists, ending with {', '.join(FORMATS)}"
            )
        with heavy_imports():
            costs = read_costs(stages, stage_ms, component_ms, source, window)
            from alrpc.planning.simulation import simulate as figures_of_all

        setting = make_setting(costs, window, **others)
        figures = figures_of_all(setting)
        if picture is not None:
            with heavy_imports():
                from alrpc.analysis.simulation_plots import draw
            draw(setting, picture)
        if as_json:
            click.echo(json.dumps(as_tree(setting, figures), indent=2))
        else:
            show(setting, figures)
            if picture is not None:
                click.echo(f"picture: {picture}")


def read_costs(
    stages: int | None, stage_ms: list[float] | None, component_ms: list[float] | None, source: Path | None, window: int
) -> StageCosts:
    """What the stages take, as the options say; raises UserError."""
    from alrpc.planning.simulation import FORWARD, StageCosts

    if component_ms is None and source is None:
        times = stage_ms or [STAGE_MS]
        count = stages or (len(times) if len(times) > 1 else STAGES)
        if len(times) not in (1, count):
            raise UsageError(f"--stage-ms: got {len(times)} times for {count} stages; give one, or one for each")
        seconds = [ms / 1000 for ms in (times * count if len(times) == 1 else times)]
        return StageCosts(seconds, [FORWARD * each for each in seconds])
    from alrpc.analysis.stage_costs import of_plan, of_run, of_times

    if component_ms is not None:
        return of_times([ms / 1000 for ms in component_ms], stages, window)
    if not source.exists():
        raise UsageError(
            f"--from: got {source}, which is not there; give a file with the JSON of alrpc plan, or a run's directory"
        )
    if not source.is_dir():
        return of_plan(source, stages, window)
    if stages is not None:
        raise UsageError(
            f"--stages: got {stages}, but {source} has been run on the stages that it has; give a plan to split it anew"
        )
    return of_run(source)


def make_setting(
    costs: StageCosts,
    window: int,
    *,
    message_mb: float | None,
    gradient_mb: float | None,
    rate_mbit: float,
    delay_ms: float,
    jitter: float | None,
    slow: tuple[int, float] | None,
    micro_batches: int | None,
    packets: int | None,
) -> Setting:
    """The setting to simulate, from the options about links, jitter and packets; raises UserError."""
    import numpy

    from alrpc.planning.simulation import Setting

    count = len(costs.seconds)
    if 0 < rate_mbit < LEAST_MBIT:
        raise UsageError(f"--rate-mbit: got {rate_mbit:g}; give at least {LEAST_MBIT:g}, or 0 for no limit")
    jitter = costs.jitter if jitter is None else jitter
    if packets is not None and packets < 4 * count:
        raise UsageError(f"--packets: got {packets}, too few to fill a pipeline of {count} stages; give at least {4 * count}")
    slowdown = numpy.ones(count)
    if slow is not None:
        stage, factor = slow
        if stage > count:
            raise UsageError(f"--slow: got stage {stage}, but there are {count}; use 1 to {count}")
        slowdown[stage - 1] = factor

    def sizes(megabytes: float | None, known: list[float] | None) -> numpy.ndarray | None:
        if megabytes is not None:
            return numpy.full(count, megabytes * MIB)
        return None if known is None else numpy.array(known)

    return Setting(
        seconds=numpy.array(costs.seconds),
        ahead=numpy.array(costs.ahead),
        packet_bytes=sizes(MESSAGE_MB if message_mb is None and costs.packet_bytes is None else message_mb, costs.packet_bytes),
        slowdown=slowdown,
        gradient_bytes=sizes(gradient_mb, costs.gradient_bytes),
        rate=rate_mbit * 1e6 / 8 or math.inf,
        delay=delay_ms / 1000,
        jitter=jitter,
        window=window,
        micro_batches=micro_batches or 4 * count,
        packets=packets or max(10_000 if jitter else 1000, 4 * count),
    )


def as_tree(setting: Setting, figures: dict[str, Figures]) -> dict:
    """The setting and the figures of all methods, for JSON."""
    return {
        "simulated": True,
        "stages": setting.stages,
        "stage_seconds": (setting.seconds * setting.slowdown).tolist(),
        "packet_bytes": setting.packet_bytes[:-1].tolist(),
        "bytes_per_second": setting.rate if math.isfinite(setting.rate) else None,
        "delay_seconds": setting.delay,
        "jitter": setting.jitter,
        "window": setting.window,
        "enough_window": setting.enough_window(),
        "micro_batches": setting.micro_batches,
        "packets": setting.packets,
        "methods": {name: dataclasses.asdict(each) for name, each in figures.items()},
    }


def show(setting: Setting, figures: dict[str, Figures]) -> None:
    """Print the setting, a row for each method, and whether the window is large enough."""
    from rich.console import Console
    from rich.table import Table

    from alrpc.planning.simulation import describe

    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, 130))
    console.print(f"SIMULATED: {describe(setting)}", soft_wrap=True, highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    table.add_column("SIMULATED", no_wrap=True)
    for name in (
        "packets/s",
        "efficiency",
        "latency s",
        f"s for {setting.packets:,}",
        "activation sets",
        "weight sets",
        "packets held",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in figures.items():
        held = (each.activation_sets, each.weight_sets, each.window_packets)
        table.add_row(
            name,
            f"{each.packets_per_second:,.2f}",
            f"{each.efficiency:.4f}",
            f"{each.latency_seconds:,.3g}",
            f"{each.seconds:,.1f}",
            *map(str, held),
        )
    console.print(table)
    enough = setting.enough_window()
    if enough > setting.window:
        console.print(f"the window of {setting.window} holds al up: from --window {enough} on no link does", highlight=False)
    if "ddp" not in figures:
        console.print("without ddp: give --gradient-mb, the size of a stage's gradients", highlight=False)
