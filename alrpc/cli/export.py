"""`alrpc export`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.options import carried_options, checkpoint_option, heavy_imports, own_options, plain_endings

FORMS = ("safetensors", "torch", "pt2", "onnx")


def _parse_exit(context: click.Context, option: click.Parameter, text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if not text.isdecimal() or not int(text):
        raise click.BadParameter(f"{text!r} is neither the number of an exit nor all.")
    return int(text)


@click.command(short_help="Write a run's network as files that need nothing of alrpc.")
@click.argument("run", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--to",
    "form",
    type=click.Choice(FORMS),
    required=True,
    help="The parameters alone; a plain nn.Module as Python; a graph of torch.export; or ONNX, which needs the extra export.",
)
@click.option(
    "--exit",
    metavar="N|all",
    callback=_parse_exit,
    help="The exit to export: after how many components; or all of them, stacked.  [default: the last]",
)
@checkpoint_option
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(readable=False, path_type=Path),
    help="The directory to make; it must not exist.  [default: export/FORM in the run]",
)
@click.option("--force", is_flag=True, help="Replace an export that is there already.")
@carried_options
@own_options("model", "objective")
def export(
    run: Path,
    form: str,
    exit: int | str | None,
    step: int | str | None,
    out: Path | None,
    force: bool,
    labels: Path | None,
    tokenizer: Path | None,
    model: str | None,
    objective: str | None,
) -> None:
    """Write a run's network as files that need nothing of alrpc.

    RUN is the directory of a run. The export is a directory in the layout of Hugging Face's hub: the network, config.json with its
    inputs, its preprocessing and the names of its classes, for texts tokenizer.json, and a model card, README.md. Any number of
    samples can be computed at once, and texts of any length.

    \b
    Examples:
        alrpc export runs/imdb --to onnx
        alrpc export runs/flowers --to torch --exit 2 --out flowers-after-two
        alrpc export runs/flowers --to pt2 --exit all

    What was written is loaded again and its answers are held against the run's, on random micro-batches of several sizes; a plain
    module is run in a process in which alrpc cannot be imported. If they differ by more than 1e-5 of the largest answer, or of 1,
    nothing is left behind.
    """
    with plain_endings():
        with heavy_imports():
            from alrpc.inference.export.export import export as export_run
            from alrpc.inference.predictor import load_run

        predictor = load_run(run, model, objective=objective, labels=labels, tokenizer=tokenizer, step=step)
        done = export_run(predictor, form, exit=exit, out=out, force=force)
        which = "all exits" if done.described["exit"] == "all" else f"exit {done.described['exit']}"
        click.echo(
            f"{done.directory}: {which} of step {done.described['step']:,}, {done.described['parameters']:,} parameters; "
            f"the largest difference from the run is {done.difference:.1e}"
        )
