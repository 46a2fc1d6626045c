"""`alrpc compare`."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alrpc.cli.options import (
    Number,
    heavy_imports,
    json_option,
    parse_methods,
    plain_endings,
    read_config,
    run_options,
    show_config,
    stages_option,
    with_stages,
)
from alrpc.errors import RunFailed, UsageError
from alrpc.experiments import METHODS
from alrpc.experiments.baselines import ASYNCHRONOUS

if TYPE_CHECKING:
    from rich.console import Console


@click.command(short_help="Compare methods on the same blocks and the same data.")
@click.option(
    "--methods",
    default=",".join(method for method in METHODS if method not in ASYNCHRONOUS),
    show_default=True,
    metavar="NAMES",
    help="The methods to run, separated by commas.",
)
@click.option(
    "--objectives",
    default="",
    metavar="NAMES",
    help="The objectives by which al and al-sequential train, separated by commas, each with fields of its own after its name.  "
    "[default: the configuration's]",
)
@stages_option
@click.option(
    "--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="The number of rounds; each has another seed."
)
@click.option(
    "--goal", type=Number(), metavar="SCORE", help="The score to which each method is timed.  [default: what all reach]"
)
@json_option
@run_options("runs/compare-<model>-<data>-<time>")
def compare(
    methods: str,
    objectives: str,
    stages: int | None,
    repeat: int,
    goal: float | None,
    as_json: bool,
    source: str | None,
    overrides: tuple[str, ...],
    print_config: bool,
    out: Path | None,
    quiet: bool,
) -> None:
    """Train the same blocks by several methods, on the same data, epochs and seeds, and show them side by side.

    \b
    al             the objective, with a process for each stage: what `alrpc launch` does
    al-sequential  the objective in one process: what `alrpc train` does
    bp             back-propagation in one process
    layer-placed   back-propagation with the layers in N processes, of which one works at a time, as in the thesis
    gpipe          back-propagation in N processes, by GPipe's schedule of torch.distributed.pipelining
    1f1b           back-propagation in N processes, by the schedule 1F1B of torch.distributed.pipelining
    pipedream      back-propagation in N processes, which do not wait for each other: PipeDream, with stashed parameters
    pipedream-2bw  the same with one update's delay for all and two versions of the parameters: PipeDream-2BW
    ddp            back-propagation with the whole network in each of N processes (DistributedDataParallel)

    Each run has processes of its own. The methods take turns, round after round, so that a machine that becomes slower does so
    for all of them. All train the same blocks from the same first parameters. Each method tries first which number of threads
    makes it fastest, gpipe and 1f1b also which number of micro-batches; each stage of al has its share of the cores. Pipedream's
    gradients are of earlier parameters than those that they change, so it learns otherwise than bp. The objective is associated
    learning unless objective.name or --objectives says otherwise; `alrpc list` names all of them, `alrpc config objective` their fields.

    \b
    Examples:
        alrpc compare --stages 2 --set train.epochs=5
        alrpc compare --config mnist-vgg-small --set data.root=DIR --methods al,bp,gpipe --stages 2 --repeat 5
        alrpc compare --methods al,1f1b,pipedream,pipedream-2bw --stages 2 --set train.accumulate=2
        alrpc compare --objectives associated,classifier --methods al,bp,ddp --stages 2
        alrpc compare --objectives "classifier head=linear,classifier head=mlp" --methods al,bp
        alrpc compare --repeat 1 --json >comparison.json

    The directory then holds comparison.json, which --json prints, accuracy.png, throughput.png and a directory for each run.
    Accuracy is that of a run's best epoch, as in the thesis, and that of its last one; with data.validation, that of the best epoch
    on the validation and on the test split. Each is a mean over the rounds with its 95 % t interval; a single round's last accuracy
    has the interval of its test samples. Times are medians over the rounds, without evaluations. Idle is the share of their time
    that the processes wait. Memory is the largest peak of one process, and the sum of the peaks of all processes.
    """
    from alrpc.config import run_name
    from alrpc.runtime.forkserver import start_fork_server

    with plain_endings(outlives_terminal=True):
        names = parse_methods(methods, METHODS)
        of_objectives = parse_objectives(objectives)
        config = read_config(source, with_stages(overrides, stages))
        if print_config:
            show_config(config)
            return
        start_fork_server()
        with heavy_imports():
            from rich.console import Console

            from alrpc.analysis.comparison import table
            from alrpc.experiments.comparison import compare as run

        console = Console(stderr=as_json)  # then standard output has nothing but JSON

        watch = partial(watching, console, quiet, config.train.epochs)

        def report(result: dict | str) -> None:
            line = result if isinstance(result, str) else f"round {result['repeat']}/{repeat} {table.run_line(result)}"
            if not quiet:
                console.print(line, soft_wrap=True, highlight=False, markup=False)

        result, directory = run(config, names, of_objectives, repeat, goal, out, run_name(config), watch, report)
        if as_json:
            click.echo(json.dumps(result, indent=2))
        else:
            show(console, result, directory)
        if failures := result["failures"]:
            raise RunFailed(f"{len(failures)} of {len(failures) + len(result['runs'])} runs failed: {failures[0]}")


def parse_objectives(text: str) -> list[str]:
    """Parse the comma-separated value of --objectives; raises UsageError for one that is given twice."""
    parts = re.split(r",(?![^\[]*\])", text)  # at commas that are in no list, such as projector_widths=[256,256]
    objectives = [" ".join(each.split()) for each in parts if each.strip()]
    if len(set(objectives)) < len(objectives):
        raise UsageError(f"--objectives: got {text!r}; give each once")
    return objectives


def watching(console: Console, quiet: bool, epochs: int, label: str, directory: Path) -> AbstractContextManager:
    """Show a run under way, on a terminal, twice a second while the context lasts."""
    from rich.live import Live

    from alrpc.analysis.comparison import table

    if quiet or not console.is_terminal:
        return nullcontext()
    under_way = partial(table.under_way, label, directory, epochs)
    return Live(console=console, transient=True, refresh_per_second=2, get_renderable=under_way)


def show(console: Console, result: dict, directory: Path) -> None:
    """Print the table of a comparison, and what was chosen for each method."""
    from rich.console import Console

    from alrpc.analysis.comparison import table

    console.print()
    wide = Console(width=max(console.width, 130)) if not console.is_terminal else console
    wide.print(table.table(result["table"], result["metric"], result["goal"]))
    if about := table.about_scores(result["table"], result["metric"]):
        console.print(about, soft_wrap=True, highlight=False, markup=False)
    console.print()
    for line in table.choices(result["table"]):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"comparison.json, accuracy.png, throughput.png: {directory}", soft_wrap=True, highlight=False)
