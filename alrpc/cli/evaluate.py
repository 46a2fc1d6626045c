"""`alrpc evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from alrpc.cli.options import (
    checkpoint_option,
    choose_run,
    device_option,
    heavy_imports,
    json_option,
    own_options,
    plain_endings,
    set_option,
)


@click.command(short_help="Measure the exits of a run on its test data, or on other data.")
@click.argument("run", type=click.Path(readable=False, path_type=Path), required=False)
@click.option("--exit", type=click.IntRange(min=1), help="The exit to measure.  [default: all of them]")
@checkpoint_option
@set_option("Other data: data.root, data.test_file, data.name, data.label_column, ... The option can be given again.")
@device_option
@own_options("model", "objective", "data")
@json_option
def evaluate(
    run: Path | None,
    exit: int | None,
    step: int | str | None,
    overrides: tuple[str, ...],
    device: str | None,
    model: str | None,
    objective: str | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Measure the exits of a run on its test data, or on other data that the run's own preprocessing prepares.

    RUN is the directory of a run; without it the last run below ./runs is taken. Its vocabulary, its classes and the sizes of its
    images are those of the training, whatever the data. With the data of the training, the scores are those of the run's last
    evaluation.

    \b
    Examples:
        alrpc evaluate
        alrpc evaluate runs/imdb --set data.test_file=mine.csv --set data.label_column=stars
        alrpc evaluate runs/flowers --set data.root=DIR --exit 2 --json
    """
    from alrpc.rundir import CONFIG

    with plain_endings():
        run = choose_run(run, "RUN", CONFIG)
        with heavy_imports():
            from rich.console import Console
            from rich.table import Table

            from alrpc.inference.evaluation import changed_data
            from alrpc.inference.evaluation import evaluate as evaluate_run
            from alrpc.inference.predictor import load_run
            from alrpc.system import local_device
        from alrpc.analysis.scores import about_interval, with_interval

        config = changed_data(run, overrides, data)
        predictor = load_run(run, model, objective=objective, step=step)
        predictor.to(local_device(device or config.device))
        console = Console(stderr=as_json)  # then standard output has nothing but JSON
        with console.status("evaluating"):
            result = evaluate_run(predictor, config, exit)
        if as_json:
            click.echo(json.dumps(result, indent=2))
            return
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
        for name in ("exit", result["metric"]):
            table.add_column(name, justify="right", no_wrap=True)
        for each in result["exits"]:
            table.add_row(str(each["exit"]), with_interval(result["metric"], each[result["metric"]], result["samples"]))
        console.print(table)
        of = f"{result['samples']:,} test samples of {result['data']}, step {result['step']:,}"
        about = f" · [low, high]: {about_interval(result['samples'])}" if result["metric"] == "accuracy" else ""
        console.print(f"{of}{about}", soft_wrap=True, highlight=False, markup=False)
