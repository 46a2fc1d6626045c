"""`alrpc compare`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from alrpc.cli.options import exit_with, heavy_imports, parse_methods, plain_endings, read_config, run_options, stages_option
from alrpc.errors import FAILED
from alrpc.experiments import METHODS


@click.command()
@click.option("--methods", default=",".join(METHODS), show_default=True, metavar="NAMES", help="Comma-separated.")
@stages_option
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds; each has another seed.")
@click.option(
    "--goal", type=float, metavar="SCORE", help="Time how long each method takes to reach it.  [default: what all reach]"
)
@run_options
def compare(
    methods: str,
    stages: int | None,
    repeat: int,
    goal: float | None,
    source: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    quiet: bool,
) -> None:
    """Train the same blocks by several methods, on the same data, epochs and seeds, and show them side by side.

    \b
    al             associated learning, with a process for each stage: what `alrpc launch` does
    al-sequential  associated learning in one process: what `alrpc train` does
    bp             back-propagation in one process
    layer-placed   back-propagation with the layers in N processes, of which one works at a time, as in the thesis
    gpipe          back-propagation in N processes, by GPipe's schedule of torch.distributed.pipelining
    1f1b           back-propagation in N processes, by the schedule 1F1B of torch.distributed.pipelining
    ddp            back-propagation with the whole network in each of N processes (DistributedDataParallel)

    Each run has processes of its own. The methods take turns, round after round, so that a machine that drifts does so
    for all. Each tries on the spot how many threads make it fastest, gpipe and 1f1b also how many micro-batches;
    a pipeline of associated learning has its share of the cores.

    \b
    Examples:
        alrpc compare --stages 2 --set train.epochs=5
        alrpc compare --config mnist-vgg-small --set data.root=DIR --methods al,bp,gpipe --stages 2 --repeat 5

    The directory (--out, else runs/compare-<config>-<time>) then holds comparison.json, accuracy.png, throughput.png
    and a directory for each run. Accuracy is the best of a run's epochs, as the thesis counts, and that of the last one: mean
    and standard deviation over the rounds. What is timed is a median over the rounds; tests are not part of s/epoch and
    samples/s. Idle is the share of their time that the processes wait. Memory is the largest peak of one process,
    and the peaks of all of them added.
    """
    from alrpc.config import config_name
    from alrpc.runtime.forkserver import start_fork_server

    with plain_endings():
        names = parse_methods(methods, METHODS)
        config = read_config(source, overrides)
        start_fork_server()
        with heavy_imports():
            from rich.console import Console
            from rich.live import Live

            from alrpc.analysis.comparison import table
            from alrpc.experiments.comparison import compare as run

        console = Console()

        @contextmanager
        def watch(label: str, directory: Path) -> Iterator[None]:
            if quiet or not console.is_terminal:
                yield
                return
            with Live(
                console=console,
                transient=True,
                refresh_per_second=2,
                get_renderable=lambda: table.under_way(label, directory, config.train.epochs),
            ):
                yield

        def report(result: dict | str) -> None:
            line = result if isinstance(result, str) else f"round {result['repeat']}/{repeat} {table.run_line(result)}"
            if not quiet:
                console.print(line, soft_wrap=True, highlight=False, markup=False)

        result, directory = run(config, names, stages, repeat, goal, out, config_name(source), watch, report)
        console.print()
        wide = Console(width=max(console.width, 130)) if not console.is_terminal else console
        wide.print(table.table(result["table"], result["metric"], result["goal"]))
        console.print()
        for line in table.choices(result["table"]):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        console.print(f"comparison.json, accuracy.png, throughput.png: {directory}", soft_wrap=True, highlight=False)
        if result["failures"]:
            exit_with(f"{len(result['failures'])} of {repeat * len(names)} runs failed: {result['failures'][0]}", FAILED)
