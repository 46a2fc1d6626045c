"""`alrpc profile`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from alrpc.cli.options import (
    heavy_imports,
    json_option,
    out_option,
    parse_methods,
    plain_endings,
    read_config,
    source_options,
    stages_option,
    with_stages,
)
from alrpc.experiments.baselines import METHODS as BASELINES

METHODS = ("al", *BASELINES)


@click.command(short_help="Record a few steps of every stage, down to each operator.")
@source_options
@stages_option
@click.option(
    "--steps", type=click.IntRange(min=1), default=8, show_default=True, help="The number of training micro-batches to record."
)
@click.option(
    "--methods",
    default="al",
    show_default=True,
    metavar="NAMES",
    help=f"The methods to record, separated by commas: some of {', '.join(METHODS)}.",
)
@out_option("runs/profile-<model>-<data>-<time>")
@json_option
def profile(
    source: str | None,
    overrides: tuple[str, ...],
    stages: int | None,
    steps: int,
    methods: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Record a few steps of every stage, down to each operator, and merge the recordings into one trace.

    All stages record the same micro-batches, from the middle of a training. For each method, DIR/<method>/trace.json.gz can be
    opened at https://ui.perfetto.dev or chrome://tracing. It has a track with what each process does with each packet, arrows
    from where a packet was sent to where it was used, and tracks of operators and kernels. DIR/timeline.png shows all
    methods on one time axis. The parameters that are trained here are not kept.

    \b
    Examples:
        alrpc profile --stages 4
        alrpc profile --config transformer-8 --stages 2 --methods al,gpipe,1f1b
    """
    from alrpc.config import run_name
    from alrpc.runtime.forkserver import start_fork_server

    with plain_endings(outlives_terminal=True):
        names = parse_methods(methods, METHODS)
        config = read_config(source, with_stages(overrides, stages))
        start_fork_server()
        with heavy_imports():
            from rich.console import Console

            from alrpc.analysis.tables import figures, share_table
            from alrpc.analysis.timeline import describe
            from alrpc.analysis.trace import TRACE
            from alrpc.experiments.profiling.profile import profile as run

        console = Console(stderr=as_json)  # then standard output has nothing but JSON
        windows, directory = run(config, names, steps, out, run_name(config), lambda name: console.status(f"recording {name}"))
        if as_json:
            of_methods = {name: {**figures(each), "trace": str(directory / name / TRACE)} for name, each in windows.items()}
            click.echo(json.dumps({"methods": of_methods, "picture": str(directory / "timeline.png")}, indent=2))
            return
        for name, window in windows.items():
            console.print(share_table(name, window))
            console.print(describe(window), soft_wrap=True, highlight=False)
            console.print(f"{directory / name / TRACE}", soft_wrap=True, highlight=False)
        console.print(f"{directory / 'timeline.png'}", soft_wrap=True, highlight=False)
