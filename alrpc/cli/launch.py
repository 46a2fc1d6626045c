"""`alrpc launch`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.options import plain_endings, run_options


@click.command()
@click.option(
    "--stages",
    type=click.IntRange(min=1),
    help="Processes that train, at most one a component.  [default: the configuration's]",
)
@run_options
def launch(stages: int | None, source: str | None, overrides: tuple[str, ...], out: Path | None, quiet: bool) -> None:
    """Train in a pipeline on this machine: a coordinator and a process for each stage.

    The result is the same, bit for bit, as that of `alrpc train`, whatever the number of stages.

    \b
    Examples:
        alrpc launch --stages 4
        alrpc launch --stages 2 --set train.epochs=5 --set train.lr=1e-3
        alrpc launch --config configs/mnist-mlp.yaml --set data.root=DIR --out runs/mnist
    A network of your own blocks, from a function that returns a list of modules:
        alrpc launch --stages 2 --set model.name=mypackage.mymodule:build

    The run's directory then holds config.yaml, metrics.jsonl, summary.json, the trained parameters under checkpoints/ and
    a log for each process under logs/. Across machines, use torchrun -m alrpc.worker.
    """
    from alrpc.config import config_name, load_config

    with plain_endings():
        config = load_config(source, [*overrides, *([f"pipeline.stages={stages}"] if stages is not None else [])])
        from alrpc.launch import launch_pipeline  # imports torch, so after what can be refused without it

        launch_pipeline(config, name=config_name(source), out=out, quiet=quiet)
