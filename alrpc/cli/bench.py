"""`alrpc bench`: measurements of the engine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from alrpc.cli.options import (
    Number,
    column_option,
    heavy_imports,
    json_option,
    out_option,
    plain_endings,
    read_config,
    set_option,
    stages_option,
    with_stages,
)
from alrpc.errors import UsageError

STANDARD_OUTPUT = "-"


@click.group(short_help="Measure the speed of the engine, or of a server.")
def bench() -> None:
    """Measure the speed of the engine: against its ceiling, alone, and over the number of stages; or of a server.

    The machine should do nothing else meanwhile.
    """


def measurement(name: str) -> Callable:
    """Add the options that all measurements share."""

    def decorate(command: Callable) -> Callable:
        for option in (
            click.option(
                "--json",
                "json_path",
                metavar="[FILE]",
                is_flag=False,
                flag_value=STANDARD_OUTPUT,
                type=click.Path(readable=False, path_type=Path, allow_dash=True),
                help="Write all figures as JSON into this file. Without FILE: on standard output, instead of the tables.",
            ),
            out_option(f"runs/bench-{name}-<time>"),
            click.option(
                "--rounds",
                type=click.IntRange(min=1),
                default=5,
                show_default=True,
                help="The number of rounds, of which the median is shown.",
            ),
        ):
            command = option(command)
        return command

    return decorate


def speed_options(command: Callable) -> Callable:
    """Add the options for the configuration to train and for the number of steps to measure."""
    for option in (
        click.option(
            "--steps",
            type=click.IntRange(min=1),
            default=10,
            show_default=True,
            help="The number of micro-batches that count in a round.",
        ),
        set_option(),
        click.option(
            "--config",
            "source",
            metavar="FILE",
            default="transformer-8",
            show_default=True,
            help="A YAML file, or the name of a configuration that ships with alrpc: see `alrpc list`.",
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
    """Measure a pipeline against its ceiling.

    The ceiling is what the same processes do at the same time on the same machine when each already has its input in its own memory
    and sends nothing. Rounds of both kinds take turns in one set of processes, and the result is the ratio within each pair of
    rounds. The steps in which the pipeline fills or drains do not count.

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

        result = measure(config, rounds, steps, directory, partial(show.watch, Console(stderr=True)))
        finish(result, show.stage_table(result["stages"]), show.ceiling_lines(result))


@bench.command()
@click.option("--stages", type=click.IntRange(min=2), default=8, show_default=True, help="The number of processes that sleep.")
@click.option(
    "--stage-ms",
    type=Number(min=0.1),
    default=20.0,
    show_default=True,
    help="Milliseconds that a stage sleeps in each step.",
)
@click.option(
    "--message-mb",
    type=Number(min=0.001),
    default=1.0,
    show_default=True,
    help="The size of a packet in units of 2²⁰ bytes.",
)
@click.option(
    "--peer",
    "peers",
    type=click.Choice(["gpipe", "1f1b", "pipedream"]),
    multiple=True,
    help="A pipeline of back-propagation to measure as well. The option can be given again.",
)
@click.option("--window", type=click.IntRange(min=1), help="Packets under way on a link: pipeline.window.  [default: 2]")
@click.option(
    "--delay-ms",
    type=Number(min=0),
    default=0.0,
    help="Milliseconds that a link takes each way; then every process has a host of its own, a network namespace (Linux, root).",
)
@click.option(
    "--rate-mbit",
    type=Number(min=0),
    default=0.0,
    help="Mbit/s of a link, likewise.  [default: no limit]",
)
@measurement("hops")
def hops(
    stages: int,
    stage_ms: float,
    message_mb: float,
    window: int | None,
    delay_ms: float,
    rate_mbit: float,
    peers: tuple[str, ...],
    rounds: int,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """Measure the engine alone, with simulated stages.

    The stages are SIMULATED by a sleep; everything else is real: processes, packets, markers, metrics. A step sleeps a third of its
    time as its forward pass, sends its packet, and sleeps the rest as its backward pass. Efficiency is the share of the time, in
    the steady state, that a stage is asked to sleep; what is missing from 1 is the cost of the engine. A peer sleeps as long for each
    batch: gpipe and 1f1b in torch.distributed.pipelining, in 8 micro-batches; pipedream in whole batches over this engine's links, with
    as many under way as there are stages. Each is measured in processes as torch has them, and in those that keep their memory, as
    this engine's do.

    \b
    Examples:
        alrpc bench hops --stages 8 --stage-ms 20 --message-mb 1 --peer gpipe --peer 1f1b --peer pipedream
        alrpc bench hops --stages 16 --stage-ms 20 --message-mb 0.25 --json hops.json
        alrpc bench hops --stages 8 --delay-ms 50 --window 8 --peer 1f1b

    With --delay-ms or --rate-mbit a router in user space forwards the packets between the hosts, which costs a part of a core.
    """
    with reported("hops", out, json_path) as (directory, finish):
        with heavy_imports():
            from rich.console import Console

            from alrpc.config import Pipeline
            from alrpc.experiments.bench import show
            from alrpc.experiments.bench.engine import hops as measure
            from alrpc.experiments.bench.slow_links import slow_links

        watch = partial(show.watch, Console(stderr=True))
        with slow_links(stages + 1, delay_ms, rate_mbit) as links:
            result = measure(
                stages, stage_ms, message_mb, window or Pipeline().window, list(peers), rounds, directory, watch, links
            )
        result |= {"delay_ms": delay_ms, "rate_mbit": rate_mbit}
        finish(result, show.stage_table(result["stages"]), show.hops_lines(result))


@bench.command()
@speed_options
@measurement("scaling")
def scaling(source: str, overrides: tuple[str, ...], steps: int, rounds: int, out: Path | None, json_path: Path | None) -> None:
    """Measure how much faster N stages are than one process.

    The sequential engine, with the threads of one stage, and pipelines of 1, 2, 4, … stages, up to the number of cores (or GPUs),
    take turns, round after round. The directory then holds scaling.png, which also shows the ideal, and what the thesis
    measured for 12 layers with threads in one process.

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

        result = measure(config, rounds, steps, directory, partial(show.watch, Console(stderr=True)))
        draw(result, directory / "scaling.png")
        finish(result, show.scaling_table(result), [f"picture: {directory / 'scaling.png'}"])


@bench.command()
@click.argument("url")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--rate",
    "rates",
    type=Number(0.1, 100_000),
    multiple=True,
    default=(50.0, 100.0, 200.0),
    show_default=True,
    help="Requests a second. The option can be given again.",
)
@click.option("--seconds", type=Number(0.1), default=10.0, show_default=True, help="How long each rate lasts.")
@click.option(
    "--clients",
    type=click.IntRange(1, 1000),
    default=64,
    show_default=True,
    help="The most requests that are under way at once.",
)
@column_option("text")
@json_option
def serve(
    url: str,
    sources: tuple[str, ...],
    rates: tuple[float, ...],
    seconds: float,
    clients: int,
    columns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure a server of `alrpc serve` at several rates of requests.

    Each request is one example of the sources, which are those of `alrpc predict`: images, folders, text files with a text a line, CSV, JSON
    lines, .npy arrays. Requests are due at fixed times, whether or not the server keeps up, and their times count from then.

    \b
    Examples:
        alrpc bench serve http://127.0.0.1:8000 reviews.txt
        alrpc bench serve http://127.0.0.1:8000 garden/ --rate 100 --rate 400 --seconds 30
    """
    from alrpc.experiments.bench.load import bodies_of, measure
    from alrpc.inference.sources import check_sources

    with plain_endings():
        check_sources(sources)
        bodies = bodies_of(url, sources, columns)
        results = []
        for rate in rates:
            results.append(measure(url, bodies, rate, seconds, clients))
            if not as_json:
                click.echo(_load_line(results[-1]))
        if as_json:
            click.echo(json.dumps(results, indent=2))


def _load_line(result: dict) -> str:
    times = ", ".join(f"{name} {result[key]:,.1f} ms" for name, key in (("p50", "p50_ms"), ("p99", "p99_ms")) if result[key])
    answers = sum(result["exits"].values())
    exits = ", ".join(f"exit {exit} {count / answers:.0%}" for exit, count in result["exits"].items())
    line = f"{result['rate']:g}/s: {result['per_second']:,.1f} answers/s, {result['errors']} errors"
    return "; ".join(filter(None, (line, times, exits)))


@contextmanager
def reported(name: str, out: Path | None, json_path: Path | None):
    """Make the directory of a measurement; yield it with a function that shows and writes the result; end the command on errors."""
    from alrpc import rundir

    def finish(result: dict, table, lines: list[str]) -> None:
        from rich.console import Console

        rundir.write_json(directory / "result.json", result)
        if printed:
            click.echo(json.dumps(result, indent=2))
            return
        if json_path is not None:
            rundir.write_json(json_path, result)
        console = Console()
        wide = console if console.is_terminal else Console(width=max(console.width, 130))
        wide.print(table)
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)
        console.print(f"all figures: {directory / 'result.json'}", soft_wrap=True, highlight=False)

    printed = str(json_path) == STANDARD_OUTPUT
    with plain_endings(outlives_terminal=True):
        if (
            json_path is not None
            and not printed
            and (json_path.is_dir() or not os.access(json_path.absolute().parent, os.W_OK))
        ):
            raise UsageError(f"--json: cannot write {json_path}; give a file in a directory that exists and can be written to")
        from alrpc.runtime.forkserver import start_fork_server

        with rundir.new_directory(out, f"bench-{name}") as directory:
            start_fork_server()
            yield directory, finish
