"""`alrpc profile`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.options import parse_methods, plain_endings, source_options

METHODS = ("al", "bp", "layer-placed", "gpipe", "1f1b", "ddp")


@click.command()
@source_options
@click.option("--stages", type=click.IntRange(min=1), help="Processes that train.  [default: the configuration's]")
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
    from alrpc.config import config_name, load_config

    with plain_endings():
        names = parse_methods(methods, METHODS)
        config = load_config(source, [*overrides, *([f"pipeline.stages={stages}"] if stages is not None else [])])
        from rich.console import Console

        from alrpc.observe.show import share_table
        from alrpc.observe.timeline import describe
        from alrpc.profiling.profile import profile as run  # imports torch, so after what can be refused without it
        from alrpc.profiling.trace import TRACE

        console = Console()
        windows, directory = run(
            config, names, steps, out, config_name(source), lambda name: console.status(f"recording {name}")
        )
        for name, window in windows.items():
            console.print(share_table(name, window))
            console.print(describe(window), soft_wrap=True, highlight=False)
            console.print(f"{directory / name / TRACE}", soft_wrap=True, highlight=False)
        console.print(f"{directory / 'timeline.png'}", soft_wrap=True, highlight=False)
