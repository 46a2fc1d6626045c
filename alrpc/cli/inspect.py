"""`alrpc inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from alrpc.cli.options import heavy_imports, plain_endings

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--samples", type=click.IntRange(min=1), default=1000, show_default=True, help="Of the test split, at most.")
@click.option(
    "--projection",
    type=click.Choice(["pca", "tsne"]),
    default="pca",
    show_default=True,
    help="To two dimensions; t-SNE takes seconds a component.",
)
@click.option("--model", metavar="MODULE:FUNCTION", help="The run's blocks, when they are your own code, to have it imported.")
@click.option("--data", metavar="MODULE:FUNCTION", help="The run's data, when it is your own code, to have it imported.")
@click.option(
    "--set",
    "overrides",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Where the data lies now: data.root, data.file or data.test_file; repeatable.",
)
def inspect(run: Path, samples: int, projection: str, model: str | None, data: str | None, overrides: tuple[str, ...]) -> None:
    """Show how good the network of a run is, depth by depth, on its test split.

    RUN is a directory that `alrpc launch` or `alrpc train` has left; its last checkpoint is taken. For each component:

    \b
    accuracy       of its exit (for a regression mse, and nothing else)
    intra          mean distance of samples' activations to the mean of their class
    inter          mean distance between the means of two classes
    inter / intra  how well the activations tell the classes apart: the larger the better

    Each layer's activations are first scaled to a mean squared distance of 1 from their mean. Which classes the last exit
    takes for which is in the confusion matrix: a row for each class, a column for each prediction.

    \b
    Examples:
        alrpc train --out runs/digits && alrpc inspect runs/digits
        alrpc inspect runs/mnist --samples 10000 --projection tsne --set data.root=DIR

    RUN then holds quality.json with all numbers and quality.png with a picture of them.
    """
    with plain_endings():
        with heavy_imports():
            from rich.console import Console

            from alrpc.analysis.quality import inspect_run, write_quality
            from alrpc.analysis.quality_plots import FEW

        console = Console()
        with console.status("inspecting"):
            result = inspect_run(run, samples, projection, model, data, overrides)
            write_quality(run, result)
        wide = Console(width=max(console.width, 130)) if not console.is_terminal else console
        wide.print(_component_table(result))
        console.print()
        if "confusion" not in result:
            console.print("the target is a regression's: a confusion matrix and distances need classes")
        elif len(result["classes"]) <= FEW:
            wide.print(_confusion_table(result))
            console.print()
        of = f"{result['samples']:,} of {result['test_samples']:,} test samples, step {result['step']:,}"
        console.print(f"{of} · quality.json, quality.png: {run}", soft_wrap=True, highlight=False, markup=False)


def _component_table(result: dict) -> Table:
    """A table with one row for each component."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    distances = {"intra": "intra", "inter": "inter", "ratio": "inter / intra"} if "confusion" in result else {}
    for name in ("component", f"{result['metric']} of its exit", *distances.values()):
        table.add_column(name, justify="right", no_wrap=True)
    for component in result["components"]:
        found = (component[name] for name in distances)
        table.add_row(
            str(component["component"]),
            f"{component[result['metric']]:.4f}",
            *("" if value is None else f"{value:.3f}" for value in found),
        )
    return table


def _confusion_table(result: dict) -> Table:
    """The confusion matrix: a row for each true class, a column for each class predicted by the last exit."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    table.add_column("class taken for", justify="right", no_wrap=True)
    for name in result["classes"]:
        table.add_column(str(name), justify="right", no_wrap=True)
    for name, row in zip(result["classes"], result["confusion"], strict=True):
        table.add_row(f"[bold]{name}[/]", *(str(count) if count else "[dim]·[/]" for count in row))
    return table
