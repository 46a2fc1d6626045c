"""Shows measurements in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alrpc.experiments.bench.measure import read_rounds

MB = 1 << 20
OVERSUBSCRIBED = (
    "more stages × threads than cores: stages take cores from each other, in the ceiling's rounds other than in the pipeline's, so "
    "the ratio is no bound"
)


@contextmanager
def watch(console: Console, directory: Path, rounds: int) -> Iterator[None]:
    """Show the progress of a measurement, on a terminal."""

    def line() -> Text:
        done = max((event["round"] for event in read_rounds(directory) if event["event"] == "round"), default=None)
        state = "starting" if not directory.exists() else "warming up" if done is None else f"round {done}/{rounds} done"
        return Text.assemble((directory.name, "bold"), f"  {state}")

    if not console.is_terminal:
        yield
        return
    with Live(console=console, transient=True, refresh_per_second=2, get_renderable=line):
        yield


def stage_table(stages: list[dict]) -> Table:
    """A row per stage: the milliseconds of a step, those at the ceiling, CPU time, and the packets and bytes received."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in (
        "stage",
        "ms/step",
        "computing",
        "waiting to receive",
        "waiting to send",
        "at the ceiling",
        "CPU ms/step",
        "packets/s",
        "MB/s",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for number, stage in enumerate(stages, 1):
        times = ("per_step", "computing", "waiting_to_receive", "waiting_to_send")
        table.add_row(
            str(number),
            *(f"{stage[f'seconds_{name}'] * 1000:.2f}" for name in times),
            f"{stage['ceiling_seconds_per_step'] * 1000:.2f}",
            f"{stage['cpu_seconds_per_step'] * 1000:.2f}",
            f"{stage['packets_per_second']:.1f}",
            f"{stage['bytes_per_second'] / MB:.1f}",
        )
    return table


def spread(values: list[float], what: str = "round", digits: int = 4) -> str:
    """The lowest and the highest of some values, as text."""
    among = f"{min(values):.{digits}f} … {max(values):.{digits}f}"
    return f"{among} in {len(values)} {what}{'' if len(values) == 1 else 's'}"


def ceiling_lines(result: dict) -> list[str]:
    """The result of `alrpc bench ceiling` in sentences."""
    return [
        f"pipeline / ceiling: {result['efficiency']:.4f} (median; {spread(result['rounds'])})",
        f"{result['samples_per_second']:,.1f} samples/s in the steady state; the ceiling is {result['ceiling_samples_per_second']:,.1f}",
        f"to fill the pipeline takes {result['fill_seconds']:.2f} s, to drain it {result['drain_seconds']:.2f} s",
        *([OVERSUBSCRIBED] if result["oversubscribed"] else []),
    ]


def hops_lines(result: dict) -> list[str]:
    """The result of `alrpc bench hops` in sentences."""
    slow = result["delay_ms"] or result["rate_mbit"]
    lines = [
        f"SIMULATED stages: each step sleeps {result['stage_ms']:g} ms; packets of {result['message_mb']:g} MB are real",
        *(
            [f"links of {result['delay_ms']:g} ms each way, {_rate(result['rate_mbit'])}, window {result['window']}"]
            if slow
            else []
        ),
        f"efficiency: {result['efficiency']:.4f} (median; {spread(result['rounds'])})",
        f"CPU time of the engine: {result['cpu_seconds_per_packet'] * 1000:.2f} ms a packet and hop, of which gloo's own send and "
        f"receive are {result['cpu_seconds_of_copies'] * 1000:.2f} ms",
    ]
    for name, peer in result["peers"].items():
        for who, figure in ((name, peer), (f"{name}, its memory kept as this engine's", peer["memory_kept"])):
            lines.append(
                f"{who}: efficiency {figure['efficiency']:.4f} (its schedule allows {figure['theoretical_efficiency']:.4f}); "
                f"this engine has {figure['throughput_ratio']:.2f} times its throughput "
                f"(median; {spread(figure['throughput_ratios'], 'turn', 2)})"
            )
    return lines


def _rate(mbit: float) -> str:
    return f"{mbit:g} Mbit/s" if mbit else "no limit of rate"


def scaling_table(result: dict) -> Table:
    """A row for the sequential engine, then one for each number of stages."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in ("stages", "samples/s", "speed-up", "ideal", "lowest … highest", "the thesis' (12 layers)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("one process, a stage's threads", f"{result['sequential_samples_per_second']:,.1f}", "1.00", "1", "", "")
    for count, stage in result["stages"].items():
        among = f"{min(stage['rounds']):.2f} … {max(stage['rounds']):.2f}"
        thesis = f"{stage['thesis']:.2f}" if stage["thesis"] else ""
        table.add_row(
            count, f"{stage['samples_per_second']:,.1f}", f"{stage['speedup']:.2f}", str(stage["ideal"]), among, thesis
        )
    return table
