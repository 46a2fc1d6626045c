"""`alrpc evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alrpc.cli.exits import ChosenExit, exit_options
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

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 10  # choices of early exits, of all that --json tells


@click.command(short_help="Measure the exits of a run on its test data, or on other data.")
@click.argument("run", type=click.Path(readable=False, path_type=Path), required=False)
@exit_options(
    "The exit to measure; or auto for early exits, once `alrpc calibrate` has measured them, or agree for those by which successive "
    "exits agree: what they keep and what they save.  [default: all of them]"
)
@checkpoint_option
@set_option("Other data: data.root, data.test_file, data.name, data.label_column, ... The option can be given again.")
@device_option
@own_options("model", "objective", "data")
@json_option
def evaluate(
    run: Path | None,
    exit: ChosenExit,
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
        alrpc evaluate runs/flowers --exit auto --target-accuracy 0.98
        alrpc evaluate runs/flowers --exit agree --similarity 0.9
    """
    from alrpc.rundir import CONFIG

    with plain_endings():
        exit.check()
        run = choose_run(run, "RUN", CONFIG)
        with heavy_imports():
            from rich.console import Console

            from alrpc.inference.early_evaluation import evaluate_early
            from alrpc.inference.evaluation import changed_data
            from alrpc.inference.evaluation import evaluate as evaluate_run
            from alrpc.inference.predictor import load_run
            from alrpc.system import local_device

        config = changed_data(run, overrides, data)
        predictor = load_run(run, model, objective=objective, step=step)
        predictor.to(local_device(device or config.device))
        console = Console(stderr=as_json)  # then standard output has nothing but JSON
        chosen_exit = exit.of(predictor)
        with console.status("evaluating"):
            result = (evaluate_early if exit.is_early else evaluate_run)(predictor, config, chosen_exit)
        if as_json:
            click.echo(json.dumps(result, indent=2))
        elif exit.is_early:
            _show_early(console, result)
        else:
            _show(console, result)


def _show(console: Console, result: dict) -> None:
    """A row for each exit, and what was measured."""
    from alrpc.analysis.scores import about_interval, with_interval

    metric, samples = result["metric"], result["samples"]
    more = [name for name in result["exits"][0] if name not in ("exit", metric, "interval")]
    rows = [
        [str(each["exit"]), with_interval(metric, each[metric], samples), *(f"{each[name]:.4f}" for name in more)]
        for each in result["exits"]
    ]
    _print_table(console, ["exit", metric, *more], rows)
    of = f"{samples:,} test samples of {result['data']}, step {result['step']:,}"
    about = f" · [low, high]: {about_interval(samples)}" if metric == "accuracy" else ""
    console.print(f"{of}{about}", soft_wrap=True, highlight=False, markup=False)
    if own := result.get("not_measured"):
        line = f"not measured, since they are code of your own: {', '.join(own)}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _show_early(console: Console, result: dict) -> None:
    """Where samples leave, what that keeps and saves, and what other choices would."""
    from alrpc.analysis.scores import about_interval, with_interval

    samples = result["samples"]
    rows = [
        [str(each["exit"]), f"{each['leaving']:.1%}", "" if each["accuracy"] is None else f"{each['accuracy']:.4f}"]
        for each in result["exits"]
    ]
    _print_table(console, ["exit", "leaving", "accuracy of those"], rows)
    console.print()
    if "choices" in result:
        _show_choices(console, result["choices"])
    kept = "" if result["kept"] is None else f", {result['kept']:.1%} of the full path's {result['full_accuracy']:.4f}"
    for line in (
        f"accuracy {with_interval('accuracy', result['accuracy'], samples)}{kept}; mean exit {result['mean_exit']:.2f}; "
        f"{result['compute']:.1%} of the full path's operations, {result['time']:.1%} of its time",
        f"{samples:,} test samples of {result['data']}, step {result['step']:,} · [low, high]: {about_interval(samples)} · "
        f"{_about_rule(result)}",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _show_choices(console: Console, choices: list[dict]) -> None:
    count = min(SHOWN, len(choices))
    picked = [choices[round(index * (len(choices) - 1) / max(1, count - 1))] for index in range(count)]
    rows = [[f"{each['compute']:.1%}", f"{each['accuracy']:.4f}", ", ".join(map(str, each["exits"]))] for each in picked]
    _print_table(console, ["other choices: compute", "accuracy", "exits that are tried"], rows)
    console.print()


def _about_rule(result: dict) -> str:
    if rule := result.get("agreement"):
        return f"similarity above {rule['similarity']:g}, patience {rule['patience']}"
    calibrated = result["calibrated_on"]
    return f"calibrated on {calibrated['samples']:,} {calibrated['split']} samples of {calibrated['data']}"


def _print_table(console: Console, heads: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
