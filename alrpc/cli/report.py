"""`alrpc report`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.options import heavy_imports, plain_endings


@click.command()
@click.argument("runs", metavar="RUN [RUN ...]", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path), help="The page.  [default: report.html in the first directory]"
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write all that runs tell into one HTML page, which needs no network and no other file.

    RUN is a directory that `alrpc launch`, `train` or `compare` has left; one that is under way, or died, will do. The page
    has the losses of each component and the scores of every exit, what each stage's time went into and which one holds the
    others up, a timeline, memory, checkpoints, restarts, and the configuration; network quality too, once `alrpc inspect` has
    measured it. Several runs, and the methods of a comparison, are shown side by side first.

    \b
    Examples:
        alrpc report runs/digits
        alrpc report runs/two-stages runs/four-stages --out stages.html
        alrpc report runs/compare-digits-mlp-20261123-173511
    """
    with plain_endings():
        with heavy_imports():
            from alrpc.analysis.report.page import write_report

        click.echo(write_report(list(runs), out))
