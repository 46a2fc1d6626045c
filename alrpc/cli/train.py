"""`alrpc train`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.options import heavy_imports, plain_endings, read_config, resume_options, run_options


@click.command()
@resume_options
@run_options
def train(
    source: str | None, overrides: tuple[str, ...], out: Path | None, resume: Path | None, step: int | None, quiet: bool
) -> None:
    """Train in this process, one component after the other: the reference that the pipeline equals.

    \b
    Examples:
        alrpc train
        alrpc train --config configs/mnist-mlp.yaml --set data.root=DIR --set train.epochs=1
        alrpc train --resume runs/mnist
    """
    from alrpc.config import config_name

    with plain_endings():
        config = read_config(source, overrides, resume, out)
        with heavy_imports():
            from alrpc.runtime.run import resume_sequentially, run_sequentially
            from alrpc.telemetry.recorder import last_line

        if resume is not None:
            summary, directory = resume_sequentially(resume, overrides, step, quiet)
        else:
            summary, directory = run_sequentially(config, config_name(source), out, quiet)
    print(last_line(summary, directory))
