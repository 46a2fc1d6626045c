"""From the directory of a run to the figures that are compared, and from those of several runs to a row of the table."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from alrpc import rundir
from alrpc.analysis.rundata import read_json, read_metrics
from alrpc.events import Evaluation, Event, StageTimes, Start
from alrpc.timing import STATES, idle_share

LOWER_IS_BETTER = {"mse"}


def read_run(directory: Path, method: str, repeat: int, seed: int) -> dict:
    """The figures of one run.

    `curve` is a list of [seconds since the first micro-batch, epoch, score of the full path]. `idle` is the share of their
    training time in which the processes that train wait.
    """
    summary = read_json(directory / rundir.SUMMARY, ("per_stage", "exits", "samples"))
    metrics = read_metrics(directory)
    start = next(time for time, event in metrics if isinstance(event, Start))
    evaluations = [(time, event) for time, event in metrics if isinstance(event, Evaluation)]
    metric = evaluations[0][1].metric
    curve = [[time - start, event.epoch, event.exits[-1]] for time, event in evaluations]
    seconds = epoch_seconds([event for _, event in metrics])
    stages = summary["per_stage"]
    peaks = [stage["peak_memory_bytes"] for stage in stages]
    if stages[0]["device"] == "cpu":  # otherwise peaks are of GPU memory, and the coordinator has none
        peaks.append(summary["coordinator_peak_memory_bytes"])
    return {
        "method": method,
        "repeat": repeat,
        "seed": seed,
        "directory": directory.name,
        "metric": metric,
        "best": best(metric, [score for _, _, score in curve]),
        "final": curve[-1][2],
        "exits": summary["exits"],
        "curve": curve,
        "epoch_seconds": seconds,
        "samples_per_second": summary["samples"] / seconds,
        "peak_memory_largest": max(peaks),
        "peak_memory_all": sum(peaks),
        "idle": idle_share([{state: stage[f"seconds_{state}"] for state in STATES} for stage in stages]),
        "parameters": summary["parameters"],
        "parameters_sha256": summary["parameters_sha256"],
        "chosen": summary["chosen"],
        "processes": len(stages),
    }


def epoch_seconds(events: list[Event]) -> float:
    """What an epoch takes the slowest process: of each, the median over its epochs but the first, where there are more.

    Testing is not part of it. Each process has a median of its own, since those of a pipeline may be some micro-batches apart:
    one that comes nearer to the next in an epoch is quicker there, and no pipeline is.
    """
    taken: dict[int, dict[int, float]] = {}
    for event in events:
        if isinstance(event, StageTimes):
            taken.setdefault(event.stage, {})[event.epoch] = event.epoch_seconds
    return max(statistics.median([epochs[e] for e in epochs if e > 1] or epochs.values()) for epochs in taken.values())


def best(metric: str, scores: list[float]) -> float:
    return min(scores) if metric in LOWER_IS_BETTER else max(scores)


def worst(metric: str, scores: list[float]) -> float:
    return max(scores) if metric in LOWER_IS_BETTER else min(scores)


def seconds_to(metric: str, curve: list[list[float]], goal: float) -> float | None:
    """When a run's score first was as good as the goal; None if it never was."""
    for seconds, _, score in curve:
        if best(metric, [score, goal]) == score:
            return seconds
    return None


def summarise(runs: list[dict], goal: float, reference: list[dict]) -> dict:
    """One method's row: mean and standard deviation of scores, medians of everything that is timed.

    Args:
        runs: the method's, at least one.
        goal: score whose reaching is timed.
        reference: the runs of `bp`, to which the speed is related round by round; empty without it.
    """
    rounds = {run["repeat"]: run["samples_per_second"] for run in reference}
    ratios = [run["samples_per_second"] / rounds[run["repeat"]] for run in runs if run["repeat"] in rounds]
    reached = [seconds_to(run["metric"], run["curve"], goal) for run in runs]
    return {
        "method": runs[0]["method"],
        "runs": len(runs),
        **{
            f"{name}_{what}": value
            for name in ("best", "final")
            for what, value in zip(("mean", "deviation"), mean_and_deviation([run[name] for run in runs]), strict=True)
        },
        "epoch_seconds": statistics.median(run["epoch_seconds"] for run in runs),
        "samples_per_second": statistics.median(run["samples_per_second"] for run in runs),
        "speed_over_bp": statistics.median(ratios) if ratios else None,
        "seconds_to_goal": None if None in reached else statistics.median(reached),
        "peak_memory_largest": max(run["peak_memory_largest"] for run in runs),
        "peak_memory_all": max(run["peak_memory_all"] for run in runs),
        "idle": statistics.median(run["idle"] for run in runs),
        "chosen": runs[-1]["chosen"],
        "processes": runs[-1]["processes"],
    }


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for that of a single value."""
    return math.fsum(values) / len(values), statistics.stdev(values) if len(values) > 1 else None
