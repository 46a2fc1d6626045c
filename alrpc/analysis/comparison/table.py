"""A comparison in the terminal: the table, what was chosen for each method, and the run under way."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from alrpc import rundir
from alrpc.analysis.metrics import read_metrics
from alrpc.analysis.scores import about_interval, mean_interval, score_interval, with_interval
from alrpc.events import Evaluation

MIB = 1 << 20


def table(rows: list[dict], metric: str, goal: float) -> Table:
    """The table, with one row per method."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    method, *figures = heads(rows, metric, goal)
    drawn.add_column(method, overflow="fold", min_width=10)  # an objective with its fields may be long
    for name in figures:
        drawn.add_column(name, justify="right", overflow="fold", min_width=4)  # on a narrow terminal two lines, but whole
    for row in rows:
        drawn.add_row(*cells(row, metric))
    return drawn


def heads(rows: list[dict], metric: str, goal: float) -> list[str]:
    """The headings of the table's columns."""
    validated = any(row.get("split") == "validation" for row in rows)
    scores = ["method", *((f"validation {metric}", f"test {metric}") if validated else (f"best {metric}", f"last {metric}"))]
    return [*scores, "s/epoch", "samples/s", "× bp", f"s to {goal:.4g}", "MiB largest", "MiB all", "idle", "parameters"]


def cells(row: dict, metric: str) -> list[str]:
    """The cells of a method's row."""
    return [
        row["method"],
        _mean(row, "best") or f"{row['best_mean']:.4f}",
        _mean(row, "final") or with_interval(metric, row["final_mean"], row.get("test_samples")),
        f"{row['epoch_seconds']:.2f}",
        f"{row['samples_per_second']:,.0f}",
        f"{row['speed_over_bp']:.2f}" if row["speed_over_bp"] else "",
        f"{row['seconds_to_goal']:.1f}" if row["seconds_to_goal"] is not None else "never",
        f"{row['peak_memory_largest'] / MIB:,.0f}",
        f"{row['peak_memory_all'] / MIB:,.0f}",
        f"{row['idle']:.0%}",
        f"{sum(row['parameters'].values()):,}" if "parameters" in row else "",
    ]


def choices(rows: list[dict]) -> list[str]:
    """One line per method: how it was run, and what the trials of threads and micro-batches took."""
    lines = []
    for row in rows:
        chosen = row["chosen"]
        alone = row["processes"] == 1
        many = "1 process" if alone else f"{row['processes']} processes"
        if row.get("engine", row["method"]) == "al":
            many = f"coordinator and {row['processes']} {'stage' if alone else 'stages'}"
        threads = f"{chosen['threads']} {'thread' if chosen['threads'] == 1 else 'threads'}{'' if alone else ' each'}"
        parts = [many, threads, chosen["device"]]
        if "micro_batches" in chosen:
            parts.append(f"{chosen['micro_batches']} micro-batches")
        tried = [
            f"{what.removeprefix('tried_').replace('_', '-')} "
            + ", ".join(f"{choice}: {seconds * 1000:.1f} ms" for choice, seconds in chosen[what].items())
            for what in ("tried_threads", "tried_micro_batches")
            if len(chosen.get(what, ())) > 1
        ]
        lines.append(f"{row['method']}: {', '.join(parts)}" + (f" (tried {'; '.join(tried)})" if tried else ""))
    return lines


def run_line(run: dict) -> str:
    """One line with the figures of a run."""
    validated = run["split"] == "validation"
    return (
        f"{run['method']}: best {'validation ' if validated else ''}{run['metric']} {run['best']:.4f}, "
        f"{'test' if validated else 'last'} {run['final']:.4f}, "
        f"{run['epoch_seconds']:.2f} s/epoch, {run['samples_per_second']:,.0f} samples/s"
    )


def under_way(label: str, directory: Path, epochs: int) -> Text:
    """One line with the progress of the run under way."""
    tests = [event for _, event in read_metrics(directory) if isinstance(event, Evaluation)]
    if tests:
        split = "" if tests[0].split == "test" else f"{tests[-1].split} "
        state = f"epoch {tests[-1].epoch}/{epochs}, {split}{tests[-1].metric} {tests[-1].exits[-1]:.4f}"
    else:
        state = f"epoch 0/{epochs}" if (directory / rundir.METRICS).exists() else "starting"
    return Text.assemble((label, "bold"), f"  {state}")


def _mean(row: dict, name: str) -> str:
    """The mean of a score over several rounds with its interval; "" where there is only one."""
    deviation = row[f"{name}_deviation"]
    return "" if deviation is None else f"{row[f'{name}_mean']:.4f} ± {mean_interval(deviation, row['runs']):.4f}"


def about_scores(rows: list[dict], metric: str) -> str:
    """What stands behind the scores, in a sentence; "" where they have no intervals.

    The best of a run's epochs was chosen by its score, so of a single round it has none.
    """
    told = ["±: 95 % t interval of the mean over the rounds"] if any(row["runs"] > 1 for row in rows) else []
    alone = [row for row in rows if row["runs"] == 1 and score_interval(metric, row["final_mean"], row.get("test_samples"))]
    told += [f"[low, high]: {about_interval(alone[0]['test_samples'])}"] if alone else []
    return "; ".join(told)
