"""`alrpc timeline`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from alrpc.cli.options import choose_run, heavy_imports, json_option, plain_endings


@click.command(short_help="Draw what each process of a run did over time.")
@click.argument("runs", metavar="[RUN ...]", type=click.Path(readable=False, path_type=Path), nargs=-1)
@click.option("--step", type=click.IntRange(min=0), help="The micro-batch to begin with.  [default: one in mid-training]")
@click.option("--steps", type=click.IntRange(min=1), help="The number of training micro-batches to show.  [default: 6]")
@json_option
def timeline(runs: tuple[Path, ...], step: int | None, steps: int | None, as_json: bool) -> None:
    """Draw what each process of a run did over time: forward, backward, update, waits, checkpoints.

    RUN is the directory of a run; without it the last run below ./runs is taken. Several runs are drawn on one time axis. The command
    writes timeline.png and timeline.svg into the first directory, and prints how each stage spent its time, the bubble (the share
    of the stages' time in which they do not work) and the bottleneck.

    A run keeps the times of some of its packets only, in blocks of 64: the first block, those whose number is a power of two, and
    the last two. --step chooses among them.

    \b
    Examples:
        alrpc timeline
        alrpc timeline runs/mnist
        alrpc timeline runs/mnist --step 20 --steps 3
        alrpc timeline runs/compare/al-1 runs/compare/1f1b-1
    """
    from alrpc.rundir import CONFIG

    with plain_endings():
        runs = runs or (choose_run(None, "RUN", CONFIG),)
        with heavy_imports():
            from rich.console import Console

            from alrpc.analysis.aligned import align_timings
            from alrpc.analysis.tables import figures, share_table
            from alrpc.analysis.timeline import STEPS, choose_window, describe, draw

        windows = [choose_window(align_timings(run), step, steps or STEPS) for run in runs]
        paths = [runs[0] / "timeline.png", runs[0] / "timeline.svg"]
        draw(windows, paths)
        if as_json:
            of_runs = [{"run": str(run), **figures(window)} for run, window in zip(runs, windows, strict=True)]
            click.echo(json.dumps({"runs": of_runs, "pictures": list(map(str, paths))}, indent=2))
            return
        console = Console()
        for run, window in zip(runs, windows, strict=True):
            console.print(share_table(str(run), window))
            console.print(describe(window), soft_wrap=True, highlight=False)
        console.print(f"{' and '.join(map(str, paths))}", soft_wrap=True, highlight=False)
