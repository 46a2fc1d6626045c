"""Measures the speed-up over the number of stages, beside the ideal and the thesis' figures for threads in one process."""

from __future__ import annotations

import statistics
from pathlib import Path

import torch

from alrpc.config import Config
from alrpc.errors import UsageError
from alrpc.experiments.bench.measure import Watch, rate, run_rounds
from alrpc.experiments.bench.rounds import PIPELINE, Settings
from alrpc.experiments.bench.sequential import measure_sequential
from alrpc.network import resolve
from alrpc.pipeline.placement import check_pipeline
from alrpc.system import cores, local_device

# Lin, 2023: AG News, 12 encoder layers over n GPUs (threads in one process); seconds per epoch on 1 GPU over those on n GPUs.
THESIS = {1: 1.00, 2: 1.01, 3: 1.19, 4: 1.30, 6: 1.09}


def stage_counts(config: Config, components: int) -> list[int]:
    """1, 2, 4, … and the most stages that this machine has cores (or GPUs) for, at most one per component."""
    on_gpu = local_device(config.device).type == "cuda"
    most = max(1, min(torch.cuda.device_count() if on_gpu else cores() // config.threads, components))
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def scaling(config: Config, rounds: int, steps: int, directory: Path, watch: Watch) -> dict:
    """Measure the sequential engine and pipelines of 1, 2, 4, … stages in turn, round after round.

    A speed-up is relative to the sequential engine in the same round.

    Raises:
        UserError: for what the user can put right.
        RunFailed, Interrupted: as `alrpc.runtime.local.run_processes`.
    """
    if isinstance(config.pipeline.split, list):
        raise UsageError(
            f"pipeline.split: got {config.pipeline.split}, but the number of stages changes here; use auto or null"
        )
    _, components = resolve(config)
    counts = stage_counts(config, components)
    check_pipeline(with_stages(config, max(counts)), components)
    directory.mkdir(parents=True, exist_ok=True)
    samples = float(config.data.batch_size)
    seconds: dict[int, list[float]] = {count: [] for count in (0, *counts)}  # 0: the sequential engine
    for number in range(1, rounds + 1):
        for count in seconds:
            place = directory / f"round-{number}-{f'{count}-stages' if count else 'sequential'}"
            if count == 0:
                with watch(place, 1):
                    seconds[0].append(measure_sequential(config, steps, place))
            else:
                measured = run_rounds(with_stages(config, count), Settings(1, steps, ceiling=False), place, watch)
                samples = measured.samples_per_step
                seconds[count].append(1 / rate(measured.rounds[1], PIPELINE))
    return {
        "components": components,
        "sequential_samples_per_second": samples / statistics.median(seconds[0]),
        "stages": {
            str(count): {
                "samples_per_second": samples / statistics.median(seconds[count]),
                "speedup": statistics.median(alone / piped for alone, piped in zip(seconds[0], seconds[count], strict=True)),
                "rounds": [alone / piped for alone, piped in zip(seconds[0], seconds[count], strict=True)],
                "ideal": count,
                "thesis": THESIS.get(count),
            }
            for count in counts
        },
    }


def with_stages(config: Config, count: int) -> Config:
    return config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"stages": count})})


def draw(result: dict, path: Path) -> None:
    """Plot the speed-up."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = [int(count) for count in result["stages"]]
    figure, axes = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
    widest = max(*counts, *THESIS)
    axes.plot([1, widest], [1, widest], color="#555555", linestyle="--", linewidth=1, label="ideal")
    axes.plot(
        list(THESIS), list(THESIS.values()), color="#d55e00", marker="v", label="the thesis: threads in one process, V100s"
    )
    speedups = [stage["speedup"] for stage in result["stages"].values()]
    axes.plot(counts, speedups, color="#0072b2", marker="o", linewidth=2, label="alrpc: a process a stage, this machine")
    for count, stage in zip(counts, result["stages"].values(), strict=True):
        axes.scatter([count] * len(stage["rounds"]), stage["rounds"], color="black", s=8, zorder=3)
        axes.annotate(f"{stage['speedup']:.2f}", (count, stage["speedup"]), xytext=(6, -12), textcoords="offset points")
    axes.set(
        xlabel="stages (GPUs in the thesis)",
        ylabel="speed-up over one process with one stage's threads",
        xticks=range(1, widest + 1),
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
