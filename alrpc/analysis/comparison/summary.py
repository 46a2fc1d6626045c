"""Summarise runs for a comparison: the figures of one run, and the table's row for all runs of a method."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from alrpc import rundir
from alrpc.analysis.contents import SUMMARY
from alrpc.analysis.metrics import read_metrics
from alrpc.events import Evaluation, Event, StageTimes, Start
from alrpc.reading.documents import read_json
from alrpc.timing import STATES, idle_share
from alrpc.training.validation import LOWER_IS_BETTER, best_epoch


def read_run(directory: Path, method: str, repeat: int, seed: int) -> dict:
    """The figures of one run.

    `curve` is a list of [seconds since the first micro-batch, epoch, score of the last exit] on `split`: the validation split if there
    is one, of which `best` is too; `final` is the last score on the test split. `idle` is the share of their
    training time that the training processes wait.
    """
    summary = read_json(directory / rundir.SUMMARY, SUMMARY)
    metrics = list(read_metrics(directory))
    start = next(time for time, event in metrics if isinstance(event, Start))
    evaluations = [(time, event) for time, event in metrics if isinstance(event, Evaluation)]
    tested, metric = evaluations[-1][1], evaluations[-1][1].metric
    split = evaluations[0][1].split  # the validation split if there is one; the last evaluation then is of the test split
    curve = [[time - start, event.epoch, event.exits[-1]] for time, event in evaluations if event.split == split]
    seconds = epoch_seconds([event for _, event in metrics])
    stages = summary["per_stage"]
    peaks = [stage["peak_memory_bytes"] for stage in stages]
    if stages[0]["device"] == "cpu":  # otherwise the peaks are of GPU memory, and the coordinator uses none
        peaks.append(summary["coordinator_peak_memory_bytes"])
    return {
        "method": method,
        "repeat": repeat,
        "seed": seed,
        "directory": directory.name,
        "metric": metric,
        "split": split,
        "test_samples": tested.samples,
        **({"validation_samples": evaluations[0][1].samples} if split == "validation" else {}),
        "chance": tested.chance,
        "best": best(metric, [score for _, _, score in curve]),
        "final": tested.exits[-1],
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
    """Seconds that the slowest process takes for an epoch: its median over all epochs but the first, where there are more.

    Evaluation does not count. The median is taken for each process by itself, because the stages of a pipeline may be some
    micro-batches apart: a stage that catches up within an epoch is faster in that epoch, although the pipeline is not.
    """
    taken: dict[int, dict[int, float]] = {}
    for event in events:
        if isinstance(event, StageTimes):
            taken.setdefault(event.stage, {})[event.epoch] = event.epoch_seconds
    return max(statistics.median([epochs[e] for e in epochs if e > 1] or epochs.values()) for epochs in taken.values())


def best(metric: str, scores: list[float]) -> float:
    """The best of some scores, which is nan only if all are."""
    return scores[best_epoch(metric, scores) - 1]


def worst(metric: str, scores: list[float]) -> float:
    """The worst of some scores."""
    return max(scores) if metric in LOWER_IS_BETTER else min(scores)


def seconds_to(metric: str, curve: list[list[float]], goal: float) -> float | None:
    """Seconds until a run's score first reached the goal; None if it never did."""
    for seconds, _, score in curve:
        if best(metric, [score, goal]) == score:
            return seconds
    return None


def summarise(runs: list[dict], goal: float, reference: list[dict]) -> dict:
    """The table's row for one method: mean and standard deviation of the scores, medians of everything that is timed.

    Args:
        runs: the method's runs, at least one.
        goal: the score whose reaching is timed.
        reference: the runs of `bp`, against which the speed is compared round by round; empty without them.
    """
    rounds = {run["repeat"]: run["samples_per_second"] for run in reference}
    ratios = [run["samples_per_second"] / rounds[run["repeat"]] for run in runs if run["repeat"] in rounds]
    reached = [seconds_to(run["metric"], run["curve"], goal) for run in runs]
    return {
        "method": runs[0]["method"],
        "runs": len(runs),
        "split": runs[-1].get("split", "test"),
        "test_samples": runs[-1]["test_samples"],
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
        **{name: runs[-1][name] for name in ("parameters", "engine", "objective") if name in runs[-1]},
    }


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; a single value has no deviation (None)."""
    return math.fsum(values) / len(values), statistics.stdev(values) if len(values) > 1 else None
