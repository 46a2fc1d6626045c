"""`alrpc calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alrpc.cli.exits import SHARE, check_one_wish
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
from alrpc.errors import UsageError, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from alrpc.analysis.contents import Calibration
    from alrpc.config import Config

TARGET = 0.99  # of the full path's accuracy, unless something else is asked for


def _parse_exits(context: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise click.BadParameter(f"{text!r} is no list of numbers of exits, such as 2,4.")
    return [int(number) for number in numbers]


@click.command(short_help="Calibrate the exits of a run, for predictions that leave early.")
@click.argument("run", type=click.Path(readable=False, path_type=Path), required=False)
@click.option(
    "--target-accuracy",
    metavar="SHARE",
    type=SHARE,
    help=f"As cheap as possible with so much of the full path's accuracy on the held-out samples.  [default: {TARGET}]",
)
@click.option(
    "--budget",
    metavar="SHARE",
    type=SHARE,
    help="Instead: as accurate as possible with at most this share of the full path's operations, such as 0.5.",
)
@click.option(
    "--exits", metavar="N,...", callback=_parse_exits, help="The exits that may be tried before the last.  [default: all]"
)
@click.option(
    "--split",
    type=click.Choice(["validation", "test"]),
    default="validation",
    show_default=True,
    help="The held-out samples: the validation split of the training, or the test split of the data named by --set.",
)
@checkpoint_option
@set_option("Where the data are, or other data: data.root, data.test_file, data.name, ... The option can be given again.")
@device_option
@own_options("model", "objective", "data")
@json_option
def calibrate(
    run: Path | None,
    target_accuracy: float | None,
    budget: float | None,
    exits: list[int] | None,
    split: str,
    step: int | str | None,
    overrides: tuple[str, ...],
    device: str | None,
    model: str | None,
    objective: str | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Calibrate the exits of a run, for predictions that leave early: `alrpc predict --exit auto`.

    RUN is the directory of a run with a validation split (data.validation); without it the last run below ./runs is taken. On these
    samples the command fits a temperature for each exit, so that its probabilities are how often it is right, and chooses by which
    exits samples leave, and how sure one must be of them. For each exit it prints:

    \b
    accuracy        how often it is right
    ECE             by how much its probabilities differ from that, before and after calibration
    failure AUROC   how well the calibrated probability tells right answers from wrong ones
    compute         the operations up to it as a share of the full path's, with the exits tried before it

    \b
    Examples:
        alrpc calibrate runs/cifar --target-accuracy 0.98
        alrpc calibrate runs/cifar --budget 0.5 --exits 2,4
        alrpc calibrate runs/imdb --split test --set data.test_file=held-out.csv

    RUN then holds calibration.json with all numbers, which --json prints.
    """
    from alrpc.rundir import CONFIG

    with plain_endings():
        check_one_wish(target_accuracy, budget)
        run = choose_run(run, "RUN", CONFIG)
        with heavy_imports():
            from rich.console import Console

            from alrpc.inference.calibrate import calibrate as calibrate_run
            from alrpc.inference.calibration import write_calibration
            from alrpc.inference.evaluation import changed_data
            from alrpc.inference.predictor import load_run
            from alrpc.system import local_device

        config = changed_data(run, overrides, data)
        predictor = load_run(run, model, objective=objective, step=step)
        predictor.to(local_device(device or config.device))
        if target_accuracy is None and budget is None:
            target_accuracy = TARGET
        console = Console(stderr=as_json)  # then standard output has nothing but JSON
        with console.status("calibrating"):
            wanted = {"target_accuracy": target_accuracy, "budget": budget}
            calibration = calibrate_run(predictor, config, split, candidates=exits, **wanted)
            write_calibration(run, calibration)
        if as_json:
            click.echo(json.dumps(calibration, indent=2))
            return
        _show(console, run, calibration)


calibrate_option = click.option(
    "--calibrate",
    "calibrates",
    is_flag=True,
    help="At the end, calibrate the exits on the validation split (data.validation), as `alrpc calibrate` does.",
)


def check_can_calibrate(config: Config) -> None:
    """Refuse, with a UsageError, to calibrate a run that will have no validation split; a data set of one's own may bring one."""
    if not config.data.validation and not config.data.is_own:
        raise UsageError("--calibrate: needs a validation split; add --set data.validation=0.1")


def calibrate_after_training(run: Path, config: Config, quiet: bool) -> None:
    """Calibrate a run that has just ended well, and stays as it is whatever happens here.

    Raises:
        UserError: when its exits cannot be calibrated.
    """
    with heavy_imports():
        from rich.console import Console

        from alrpc.config import user_code_fields
        from alrpc.inference.calibrate import calibrate as calibrate_run
        from alrpc.inference.calibration import write_calibration
        from alrpc.inference.predictor import load_run
        from alrpc.system import local_device

    own = user_code_fields(config)  # which the training has imported already
    try:
        predictor = load_run(run, own.get("model.name"), objective=own.get("objective.name"))
        predictor.to(local_device(config.device))
        calibration = calibrate_run(predictor, predictor.config, target_accuracy=TARGET)
        write_calibration(run, calibration)
    except UserError as error:
        raise UserError(f"the run has ended well, but its exits are not calibrated: {error}") from error
    if not quiet:
        _show(Console(), run, calibration)


def _show(console: Console, run: Path, calibration: Calibration) -> None:
    """A row for each exit, and which exits were chosen."""
    from alrpc.inference.calibration import chosen
    from alrpc.rundir import CALIBRATION

    choice = chosen(calibration)
    console.print(_table(calibration, choice["exits"]))
    leaving = ", ".join(f"{share:.0%} by exit {exit}" for exit, share in zip(choice["exits"], choice["leaving"], strict=True))
    of = f"{calibration['samples']:,} {calibration['split']} samples of {calibration['data']}, step {calibration['step']:,}"
    full = calibration["exits"][-1]["accuracy"]
    kept = f" ({choice['accuracy'] / full:.1%} of the full path's)" if full else ""
    for line in (
        f"chosen: {leaving}: {choice['compute']:.1%} of the full path's operations, {choice['time']:.1%} of its time, accuracy "
        f"{choice['accuracy']:.4f}{kept}",
        f"{of} · {CALIBRATION}: {run}",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _table(calibration: Calibration, tried: list[int]) -> Table:
    """A table with a row for each exit; the compute of an exit that is not tried is told as if it were tried last."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in ("exit", "accuracy", "temperature", "ECE", "calibrated", "failure AUROC", "compute", "tried"):
        table.add_column(name, justify="right", no_wrap=True)
    exits = calibration["exits"]
    full = sum(each["block_flops"] for each in exits) + exits[-1]["exit_flops"]
    blocks = before = 0.0
    for each in exits:
        blocks += each["block_flops"]
        is_tried = each["exit"] in tried
        area = "" if each["failure_auroc"] is None else f"{each['failure_auroc']:.3f}"
        table.add_row(
            str(each["exit"]),
            f"{each['accuracy']:.4f}",
            f"{each['temperature']:.3g}",
            f"{each['ece']:.4f}",
            f"{each['ece_calibrated']:.4f}",
            area,
            f"{(blocks + before + each['exit_flops']) / full:.1%}",
            "yes" if is_tried else "",
        )
        before += each["exit_flops"] if is_tried else 0
    return table
