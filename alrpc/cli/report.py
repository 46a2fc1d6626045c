"""`alrpc report`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.options import choose_run, heavy_imports, plain_endings


@click.command(short_help="Write a report on runs, as one HTML page.")
@click.argument("runs", metavar="[RUN ...]", type=click.Path(readable=False, path_type=Path), nargs=-1)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(readable=False, path_type=Path),
    help="The file to write.  [default: report.html in the first directory]",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write a report on one run or several: an HTML page that needs no network and no other file.

    RUN is the directory of a run or of a comparison, also of a run that is under way or has failed; without it the last one below
    ./runs is taken. The page shows the losses of each component and the scores of every exit, how each stage spent its time and
    which stage holds up the others, a timeline, memory, checkpoints, restarts and the configuration, and the quality of the
    network once `alrpc inspect` has measured it. Several runs, and the methods of a comparison, are shown side by side.

    \b
    Examples:
        alrpc report
        alrpc report runs/two-stages runs/four-stages --out stages.html
        alrpc report runs/compare-mlp-digits-20261123-173511
    """
    from alrpc.rundir import COMPARISON, CONFIG

    with plain_endings():
        runs = runs or (choose_run(None, "RUN", CONFIG, COMPARISON),)
        with heavy_imports():
            from alrpc.analysis.report.page import write_report

        click.echo(write_report(list(runs), out))
