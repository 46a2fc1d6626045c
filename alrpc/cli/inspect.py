"""`alrpc inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alrpc.cli.options import choose_run, heavy_imports, json_option, own_options, plain_endings, set_option

if TYPE_CHECKING:
    from rich.table import Table


@click.command(short_help="Measure how good the network of a run is, depth by depth.")
@click.argument("run", type=click.Path(readable=False, path_type=Path), required=False)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="The largest number of samples to take of the test split.",
)
@click.option(
    "--projection",
    type=click.Choice(["pca", "tsne"]),
    default="pca",
    show_default=True,
    help="How the activations are brought to two dimensions; t-SNE takes seconds for each component.",
)
@own_options("model", "objective", "data")
@set_option("Where the data lies now: data.root, data.file or data.test_file. The option can be given again.")
@json_option
def inspect(
    run: Path | None,
    samples: int,
    projection: str,
    model: str | None,
    objective: str | None,
    data: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure how good the network of a run is, depth by depth, on its test split.

    RUN is the directory of a run, of which the last checkpoint is taken; without it the last run below ./runs is taken. For each
    component the command prints:

    \b
    accuracy       that of its exit (for several labels label_accuracy, for a regression mse, and nothing else)
    intra          the mean distance of a sample's activations to the mean of its class
    inter          the mean distance between the means of two classes
    inter / intra  how well the activations tell the classes apart: the larger the better

    The activations of each component are first scaled to a mean squared distance of 1 from their mean. The confusion matrix tells
    which classes the last exit takes for which: it has a row for each class and a column for each prediction.

    \b
    Examples:
        alrpc train && alrpc inspect
        alrpc inspect runs/mnist --samples 10000 --projection tsne --set data.root=DIR

    RUN then holds quality.json with all numbers, which --json prints, and quality.png with a picture of them.
    """
    from alrpc.rundir import CONFIG

    with plain_endings():
        run = choose_run(run, "RUN", CONFIG)
        with heavy_imports():
            from rich.console import Console

            from alrpc.analysis.quality import inspect_run, write_quality
            from alrpc.analysis.quality_plots import FEW
        from alrpc.analysis.scores import about_interval

        console = Console(stderr=as_json)  # then standard output has nothing but JSON
        with console.status("inspecting"):
            result = inspect_run(run, samples, projection, model, objective, data, overrides)
            write_quality(run, result)
        if as_json:
            click.echo(json.dumps(result, indent=2))
            return
        wide = Console(width=max(console.width, 130)) if not console.is_terminal else console
        wide.print(_component_table(result))
        if result["metric"] == "accuracy":
            console.print(f"[low, high]: {about_interval(result['samples'])}", soft_wrap=True, highlight=False, markup=False)
        console.print()
        if "confusion" not in result:
            console.print("a confusion matrix and distances need classes, one for each sample")
        elif len(result["classes"]) <= FEW:
            wide.print(_confusion_table(result))
            console.print()
        of = f"{result['samples']:,} of {result['test_samples']:,} test samples, step {result['step']:,}"
        console.print(f"{of} · quality.json, quality.png: {run}", soft_wrap=True, highlight=False, markup=False)


def _component_table(result: dict) -> Table:
    """A table with one row for each component."""
    from rich.table import Table

    from alrpc.analysis.scores import with_interval

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    distances = {"intra": "intra", "inter": "inter", "ratio": "inter / intra"} if "confusion" in result else {}
    for name in ("component", f"{result['metric']} of its exit", *distances.values()):
        table.add_column(name, justify="right", no_wrap=True)
    for component in result["components"]:
        found = (component[name] for name in distances)
        table.add_row(
            str(component["component"]),
            with_interval(result["metric"], component[result["metric"]], result["samples"]),
            *("" if value is None else f"{value:.3f}" for value in found),
        )
    return table


def _confusion_table(result: dict) -> Table:
    """The confusion matrix: a row for each true class, a column for each class predicted by the last exit."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    table.add_column("class taken for", justify="right", no_wrap=True)
    for name in result["classes"]:
        table.add_column(Text(str(name)), justify="right", no_wrap=True)
    for name, row in zip(result["classes"], result["confusion"], strict=True):
        table.add_row(Text(str(name), "bold"), *(str(count) if count else "[dim]·[/]" for count in row))
    return table
