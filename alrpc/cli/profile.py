"""`alrpc profile`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.options import (
    heavy_imports,
    parse_methods,
    plain_endings,
    read_config,
    source_options,
    stages_option,
    with_stages,
)
from alrpc.experiments.baselines import METHODS as BASELINES

METHODS = ("al", *BASELINES)


@click.command()
@source_options
@stages_option
@click.option(
    "--steps", type=click.IntRange(min=1), default=8, show_default=True, help="Training micro-batches to record, in mid-stream."
)
@click.option("--methods", default="al", show_default=True, metavar="NAMES", help=f"Comma-separated, of {', '.join(METHODS)}.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory to make.  [default: runs/profile-<config>-<time>]",
)
def profile(
    source: str | None, overrides: tuple[str, ...], stages: int | None, steps: int, methods: str, out: Path | None
) -> None:
    """Record a few steps of every stage down to each operator, and merge them into one trace.

    Markers in the stream begin and end the recording, so all stages record the same micro-batches, after some that warm up and
    before some that keep every stage at work. For each method, DIR/<method>/trace.json.gz is for https://ui.perfetto.dev or
    chrome://tracing: a track for what each stage does with each packet, with arrows from a packet's sending to its use in
    the next stage, the coordinator included, and tracks for operators and kernels. DIR/timeline.png shows all methods on one
    time axis. Nothing trained here is kept.

    \b
    Examples:
        alrpc profile --stages 4
        alrpc profile --config transformer-8 --stages 2 --methods al,gpipe,1f1b
    """
    from alrpc.config import config_name
    from alrpc.runtime.forkserver import start_fork_server

    with plain_endings():
        names = parse_methods(methods, METHODS)
        config = read_config(source, with_stages(overrides, stages))
        start_fork_server()
        with heavy_imports():
            from rich.console import Console

            from alrpc.analysis.tables import share_table
            from alrpc.analysis.timeline import describe
            from alrpc.analysis.trace import TRACE
            from alrpc.experiments.profiling.profile import profile as run

        console = Console()
        windows, directory = run(
            config, names, steps, out, config_name(source), lambda name: console.status(f"recording {name}")
        )
        for name, window in windows.items():
            console.print(share_table(name, window))
            console.print(describe(window), soft_wrap=True, highlight=False)
            console.print(f"{directory / name / TRACE}", soft_wrap=True, highlight=False)
        console.print(f"{directory / 'timeline.png'}", soft_wrap=True, highlight=False)
