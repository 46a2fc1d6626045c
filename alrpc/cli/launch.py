"""`alrpc launch`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.calibrate import calibrate_after_training, calibrate_option, check_can_calibrate
from alrpc.cli.options import (
    choose_run,
    heavy_imports,
    plain_endings,
    read_config,
    resume_options,
    run_options,
    show_config,
    stages_option,
    verbose_option,
    with_stages,
)


@click.command(short_help="Train in a pipeline of processes on this machine.")
@stages_option
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How often the run is continued from its last checkpoint after one of its processes has died.",
)
@resume_options
@calibrate_option
@verbose_option
@run_options("runs/<model>-<data>-<time>")
def launch(
    stages: int | None,
    max_restarts: int,
    source: str | None,
    overrides: tuple[str, ...],
    print_config: bool,
    out: Path | None,
    resume: Path | None,
    step: int | None,
    quiet: bool,
    verbose: bool,
    calibrates: bool,
) -> None:
    """Train in a pipeline on this machine, with a coordinator and a process for each stage.

    The trained parameters are the same, bit for bit, as those of `alrpc train`, whatever the number of stages.

    \b
    The handwritten digits, which need no download, and the same with fields of the configuration changed:
        alrpc launch --stages 4
        alrpc launch --stages 2 --set train.epochs=5 --set train.lr=1e-3
    Another configuration:
        alrpc launch --config mnist-mlp --set data.root=DIR --out runs/mnist
    A network of your own blocks, from a function that returns a list of modules:
        alrpc launch --stages 2 --set model.name=mypackage.mymodule:build
    The last run is continued on two stages; a run that has ended is continued for more epochs:
        alrpc launch --resume --stages 2
        alrpc launch --resume runs/mnist --set train.epochs=40

    The names of configurations, models and data sets are listed by `alrpc list`, the fields of the configuration by
    `alrpc config`. The run's directory then holds config.yaml, metrics.jsonl, summary.json, the trained parameters under
    checkpoints/ and a log of each process under logs/. On several machines, use torchrun -m alrpc.worker.
    """
    from alrpc.rundir import CONFIG
    from alrpc.runtime.forkserver import start_fork_server

    with plain_endings(outlives_terminal=True):
        overrides = with_stages(overrides, stages)
        resume = choose_run(resume, "--resume", CONFIG) if resume is not None else None
        config = read_config(source, overrides, resume, out)
        if print_config:
            show_config(config)
            return
        if calibrates:
            check_can_calibrate(config)
        start_fork_server()  # it imports torch at the same time as this process
        with heavy_imports():
            from alrpc.runtime.restarts import launch_pipeline, resume_pipeline

        if resume is not None:
            _, directory = resume_pipeline(resume, overrides, step, quiet=quiet, verbose=verbose, max_restarts=max_restarts)
        else:
            _, directory = launch_pipeline(config, out=out, quiet=quiet, verbose=verbose, max_restarts=max_restarts)
        if calibrates:
            calibrate_after_training(directory, config, quiet)
