"""`alrpc train`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.options import plain_endings, run_options


@click.command()
@run_options
def train(source: str | None, overrides: tuple[str, ...], out: Path | None, quiet: bool) -> None:
    """Train in this process, one component after the other: the reference that the pipeline equals.

    \b
    Examples:
        alrpc train
        alrpc train --config configs/mnist-mlp.yaml --set data.root=DIR --set train.epochs=1
    """
    from alrpc.config import config_name, load_config

    with plain_endings():
        config = load_config(source, overrides)
        from alrpc.observe.record import last_line  # these import torch, so after what can be refused without it
        from alrpc.run import run_sequentially

        summary, directory = run_sequentially(config, config_name(source), out, quiet)
    print(last_line(summary, directory))
