"""Pictures of SIMULATED training: throughput, latency and memory over stages, latency, bandwidth and window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alrpc import rundir
from alrpc.planning.simulation import METHODS, Figures, Setting, describe

STAGES = [2**power for power in range(2, 13)]  # 4 … 4,096
DELAYS = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]  # seconds
RATES = [1e8, 3e8, 1e9, 3e9, 1e10, 3e10, 1e11, 4e11]  # bits a second
WINDOWS = [1, 2, 4, 8, 16, 32, 64]
LOOKS = {  # colour-blind safe; one marker each, since lines lie on each other
    "al": ("#0072b2", "o"),
    "al, window as needed": ("#56b4e9", "*"),
    "gpipe": ("#d55e00", "s"),
    "1f1b": ("#e69f00", "^"),
    "pipedream": ("#009e73", "v"),
    "ddp": ("#888888", "x"),
}
Lines = dict[str, list[tuple[float, Figures]]]


def draw(setting: Setting, path: Path) -> None:
    """Draw how all methods fare as one thing changes at a time, the others being those of the setting."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    stages, delays, rates, windows, memory, latency = figure.subplots(2, 3).flat
    over_stages = sweep(STAGES, lambda count: with_stages(setting, count))
    unit = float(numpy.max(setting.seconds))
    for axes, lines, across in (
        (stages, over_stages, "stages"),
        (delays, sweep(DELAYS, lambda seconds: replace(setting, delay=seconds)), "latency of a link, one way, s"),
        (rates, sweep(RATES, lambda bits: replace(setting, rate=bits / 8)), "bandwidth of a link, bit/s"),
        (windows, sweep(WINDOWS, lambda window: replace(setting, window=int(window)), needed=False), "window"),
    ):
        _plot(axes, lines, lambda figures: figures.packets_per_second * unit)
        axes.set(xlabel=across, ylabel="micro-batches a stage's step", xscale="log", ylim=(0, 1.08))
    _plot(latency, over_stages, lambda figures: figures.latency_seconds)
    latency.set(xlabel="stages", ylabel="latency of a micro-batch, s", xscale="log", yscale="log")
    _plot(memory, over_stages, lambda figures: figures.activation_sets + figures.window_packets)
    memory.set(xlabel="stages", ylabel="activation sets and packets held", xscale="log", yscale="log")
    for axes in figure.axes:
        axes.grid(alpha=0.25)
    stages.legend(frameon=False, fontsize=8)
    figure.suptitle(f"SIMULATED: {describe(setting)}", fontsize=10)
    with rundir.partial_file(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix("."), dpi=110)


def with_stages(setting: Setting, count: int) -> Setting:
    """As many stages, the given ones over and over, with as many micro-batches between two flushes for each."""
    slowdown = numpy.ones(count)
    slowdown[: setting.stages] = setting.slowdown[:count]
    gradients = setting.gradient_bytes
    return replace(
        setting,
        seconds=numpy.resize(setting.seconds, count),
        ahead=numpy.resize(setting.ahead, count),
        packet_bytes=numpy.resize(setting.packet_bytes, count),
        slowdown=slowdown,
        gradient_bytes=None if gradients is None else numpy.resize(gradients, count),
        micro_batches=max(1, setting.micro_batches * count // setting.stages),
        packets=max(setting.packets, 4 * count),
    )


def sweep(values: Sequence[float], change: Callable[[float], Setting], needed: bool = True) -> Lines:
    """For each method, the values and its figures at each of them.

    Args:
        needed: whether to add this engine with the window from which on no link holds it up.
    """
    lines: Lines = {}
    for value in values:
        setting = change(value)
        for name, method in METHODS.items():
            if name != "ddp" or setting.gradient_bytes is not None:
                lines.setdefault(name, []).append((value, method(setting)))
        if needed:
            enough = replace(setting, window=max(setting.window, setting.enough_window()))
            lines.setdefault("al, window as needed", []).append((value, METHODS["al"](enough)))
    return lines


def _plot(axes: Axes, lines: Lines, value: Callable[[Figures], float]) -> None:
    for name, points in lines.items():
        colour, marker = LOOKS[name]
        across = [at for at, _ in points]
        axes.plot(across, [value(figures) for _, figures in points], color=colour, marker=marker, markersize=5, label=name)
