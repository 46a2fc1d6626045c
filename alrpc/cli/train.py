"""`alrpc train`."""

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
    verbose_option,
)


@click.command(short_help="Train in this process, one component after the other.")
@resume_options
@calibrate_option
@verbose_option
@run_options("runs/<model>-<data>-<time>")
def train(
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
    """Train in this process, one component after the other.

    This is the reference for the pipeline: `alrpc launch` ends with the same parameters, bit for bit.

    \b
    The handwritten digits, which need no download:
        alrpc train
    Another configuration, with fields of it changed:
        alrpc train --config mnist-mlp --set data.root=DIR --set train.epochs=1
    The last run is continued for more epochs:
        alrpc train --resume --set train.epochs=40

    The names of configurations, models and data sets are listed by `alrpc list`, the fields of the configuration by
    `alrpc config`. The run's directory then holds config.yaml, metrics.jsonl, summary.json and the trained parameters
    under checkpoints/.
    """
    from alrpc.config import run_name
    from alrpc.rundir import CONFIG

    with plain_endings(outlives_terminal=True):
        resume = choose_run(resume, "--resume", CONFIG) if resume is not None else None
        config = read_config(source, overrides, resume, out)
        if print_config:
            show_config(config)
            return
        if calibrates:
            check_can_calibrate(config)
        with heavy_imports():
            from alrpc.runtime.run import resume_sequentially, run_sequentially
            from alrpc.telemetry.recorder import last_line

        if resume is not None:
            summary, directory = resume_sequentially(resume, overrides, step, quiet, verbose)
        else:
            summary, directory = run_sequentially(config, run_name(config), out, quiet, verbose)
        print(last_line(summary, directory))
        if calibrates:
            calibrate_after_training(directory, config, quiet)
