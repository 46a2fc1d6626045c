"""`alrpc bench`: measurements of the engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from alrpc.cli.options import heavy_imports, plain_endings, read_config, set_option, stages_option, with_stages
from alrpc.errors import UsageError


@click.group()
def bench() -> None:
    """Measure the engine: against its ceiling, alone, and over the number of stages.

    Measure on a machine that does nothing else.
    """


def measurement(name: str) -> Callable:
    """Add the options that all measurements share."""

    def decorate(command: Callable) -> Callable:
        for option in (
            click.option(
                "--json", "json_path", metavar="FILE", type=click.Path(path_type=Path), help="Write all figures here."
            ),
            click.option(
                "--out",
                metavar="DIR",
                type=click.Path(path_type=Path),
                help=f"Directory for logs and raw figures.  [default: runs/bench-{name}-<time>]",
            ),
            click.option(
                "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of which the median is told."
            ),
        ):
            command = option(command)
        return command

    return decorate


def speed_options(command: Callable) -> Callable:
    """Add the options for the configuration to train and for the number of steps to measure."""
    for option in (
        click.option(
            "--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Micro-batches counted in a round."
        ),
        set_option,
        click.option(
            "--config",
            "source",
            metavar="FILE",
            default="transformer-8",
            show_default=True,
            help="YAML file, or the name of one that ships with alrpc. The default is an 8-layer Transformer on generated tokens.",
        ),
    ):
        command = option(command)
    return command


@bench.command()
@speed_options
@stages_option
@measurement("ceiling")
def ceiling(
    source: str,
    overrides: tuple[str, ...],
    stages: int | None,
    steps: int,
    rounds: int,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """The pipeline against its ceiling.

    The ceiling is what the same stage processes do, at the same time, on the same machine, when each already has its input in
    its own memory and sends nothing. Rounds of both kinds take turns in one set of processes; what is told is the
    ratio within each pair. The steps while the pipeline fills or drains do not count.

    \b
    Examples:
        alrpc bench ceiling --stages 2
        alrpc bench ceiling --config mnist-vgg-small --set data.root=DIR --stages 2 --steps 100 --json ceiling.json
    """
    with reported("ceiling", out, json_path) as (directory, finish):
        config = read_config(source, with_stages(overrides, stages))
        with heavy_imports():
            from rich.console import Console

            from alrpc.experiments.bench import show
            from alrpc.experiments.bench.ceiling import ceiling as measure

        console = Console()
        result = measure(config, rounds, steps, directory, partial(show.watch, console))
        finish(result, show.stage_table(result["stages"]), show.ceiling_lines(result))


@bench.command()
@click.option("--stages", type=click.IntRange(min=2), default=8, show_default=True, help="Processes that sleep.")
@click.option(
    "--stage-ms", type=click.FloatRange(min=0.1), default=20.0, show_default=True, help="Sleep of a step in each stage."
)
@click.option(
    "--message-mb", type=click.FloatRange(min=0.001), default=1.0, show_default=True, help="Size of a packet, 2²⁰ bytes."
)
@click.option("--peer", "peers", type=click.Choice(["gpipe", "1f1b"]), multiple=True, help="Measure torch's too; repeatable.")
@measurement("hops")
def hops(
    stages: int,
    stage_ms: float,
    message_mb: float,
    peers: tuple[str, ...],
    rounds: int,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """The engine alone, its stages simulated.

    Stages are SIMULATED by a sleep, everything else is real: processes, packets, markers, metrics. A step sleeps a third of
    its time as forward pass, hands its packet on, and sleeps the rest as backward pass. Efficiency is the share of the time, in
    the steady state, that a stage is asked to sleep: what is missing from 1 is the engine's. A peer runs the same sleep a batch
    in torch.distributed.pipelining, in 8 micro-batches; once as torch has it, and once in processes that keep their memory as
    this engine's do.

    \b
    Examples:
        alrpc bench hops --stages 8 --stage-ms 20 --message-mb 1 --peer gpipe --peer 1f1b
        alrpc bench hops --stages 16 --stage-ms 20 --message-mb 0.25 --json hops.json
    """
    with reported("hops", out, json_path) as (directory, finish):
        with heavy_imports():
            from rich.console import Console

            from alrpc.experiments.bench import show
            from alrpc.experiments.bench.engine import hops as measure

        result = measure(stages, stage_ms, message_mb, list(peers), rounds, directory, partial(show.watch, Console()))
        finish(result, show.stage_table(result["stages"]), show.hops_lines(result))


@bench.command()
@speed_options
@measurement("scaling")
def scaling(source: str, overrides: tuple[str, ...], steps: int, rounds: int, out: Path | None, json_path: Path | None) -> None:
    """How much faster N stages are than one process.

    The sequential engine, with one stage's threads, then pipelines of 1, 2, 4, … stages, as many as there are cores (or GPUs)
    for; all of them in turn, round after round. Beside the ideal stands what the thesis measured for 12 layers with threads
    in one process. The directory then holds scaling.png.

    \b
    Examples:
        alrpc bench scaling --rounds 3
        alrpc bench scaling --config agnews-transformer-scaling --set model.layers=6
    """
    with reported("scaling", out, json_path) as (directory, finish):
        config = read_config(source, overrides)
        with heavy_imports():
            from rich.console import Console

            from alrpc.experiments.bench import show
            from alrpc.experiments.bench.scaling import draw
            from alrpc.experiments.bench.scaling import scaling as measure

        result = measure(config, rounds, steps, directory, partial(show.watch, Console()))
        draw(result, directory / "scaling.png")
        finish(result, show.scaling_table(result), [f"picture: {directory / 'scaling.png'}"])


@contextmanager
def reported(name: str, out: Path | None, json_path: Path | None):
    """Make the directory of a measurement; yield it with a function that shows and writes the result; end the command on errors."""
    from alrpc import rundir

    def finish(result: dict, table, lines: list[str]) -> None:
        from rich.console import Console

        for path in (directory / "result.json", *([json_path] if json_path else [])):
            rundir.write_json(path, result)
        console = Console()
        wide = console if console.is_terminal else Console(width=max(console.width, 130))
        wide.print(table)
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)
        console.print(f"all figures: {directory / 'result.json'}", soft_wrap=True, highlight=False)

    with plain_endings():
        if json_path is not None and (json_path.is_dir() or not os.access(json_path.absolute().parent, os.W_OK)):
            raise UsageError(f"--json: cannot write {json_path}; give a file in a directory that exists and can be written to")
        from alrpc.runtime.forkserver import start_fork_server

        with rundir.new_directory(out, f"bench-{name}") as directory:
            start_fork_server()
            yield directory, finish
