"""`alrpc launch`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.options import heavy_imports, plain_endings, read_config, resume_options, run_options, stages_option, with_stages


@click.command()
@stages_option
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How often a run whose process died goes on by itself from its last checkpoint.",
)
@resume_options
@run_options
def launch(
    stages: int | None,
    max_restarts: int,
    source: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    step: int | None,
    quiet: bool,
) -> None:
    """Train in a pipeline on this machine: a coordinator and a process for each stage.

    The result is the same, bit for bit, as that of `alrpc train`, whatever the number of stages.

    \b
    Examples:
        alrpc launch --stages 4
        alrpc launch --stages 2 --set train.epochs=5 --set train.lr=1e-3
        alrpc launch --config configs/mnist-mlp.yaml --set data.root=DIR --out runs/mnist
    A network of your own blocks, from a function that returns a list of modules:
        alrpc launch --stages 2 --set model.name=mypackage.mymodule:build
    A run that was stopped goes on, here on two stages; one that has ended goes on for more epochs:
        alrpc launch --resume runs/mnist --stages 2
        alrpc launch --resume runs/mnist --set train.epochs=40

    The run's directory then holds config.yaml, metrics.jsonl, summary.json, the trained parameters under checkpoints/ and
    a log for each process under logs/. Across machines, use torchrun -m alrpc.worker.
    """
    from alrpc.config import config_name
    from alrpc.runtime.forkserver import start_fork_server

    with plain_endings():
        overrides = with_stages(overrides, stages)
        config = read_config(source, overrides, resume, out)
        start_fork_server()  # it imports torch at the same time as this process
        with heavy_imports():
            from alrpc.runtime.restarts import launch_pipeline, resume_pipeline

        if resume is not None:
            resume_pipeline(resume, overrides, step, quiet=quiet, max_restarts=max_restarts)
        else:
            launch_pipeline(config, name=config_name(source), out=out, quiet=quiet, max_restarts=max_restarts)
