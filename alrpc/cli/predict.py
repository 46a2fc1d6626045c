"""`alrpc predict`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alrpc.cli.exits import ChosenExit, exit_options
from alrpc.cli.options import (
    carried_options,
    checkpoint_option,
    column_option,
    device_option,
    heavy_imports,
    own_options,
    plain_endings,
)
from alrpc.errors import UsageError
from alrpc.posix.streams import is_lost

if TYPE_CHECKING:
    from alrpc.inference.early_exit import Rule
    from alrpc.inference.predict import Named
    from alrpc.inference.predictor import Predictor


@click.command(short_help="Predict what is in files, or comes from standard input, by a run.")
@click.argument("run", type=click.Path(readable=False, path_type=Path))
@click.argument("sources", metavar="SOURCE...|-", nargs=-1)
@click.option("--top-k", type=click.IntRange(min=1), default=1, show_default=True, help="How many classes to name.")
@exit_options(
    "The exit to predict by: after how many components; or auto, for each example the first one that is sure enough of it, once "
    "`alrpc calibrate` has measured them; or agree, the first one that agrees with that before it.  [default: the last]"
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of JSON lines.")
@column_option("data.text_column of the run")
@click.option(
    "--format",
    "form",
    type=click.Choice(["lines", "csv", "jsonl"]),
    help="What standard input is, or a file whose name does not tell.  [default: lines]",
)
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be read, with a line about each, instead of ending.")
@click.option("--batch-size", type=click.IntRange(min=1), help="How many to compute at once.  [default: that of the run]")
@click.option(
    "--stages",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many processes to split the network over, which then work at once.",
)
@device_option
@checkpoint_option
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(readable=False, path_type=Path),
    help="The file to write instead of standard output; it is there once all is predicted.",
)
@carried_options
@own_options("model", "objective")
def predict(
    run: Path,
    sources: tuple[str, ...],
    top_k: int,
    exit: ChosenExit,
    as_csv: bool,
    columns: tuple[str, ...],
    form: str | None,
    skip_bad: bool,
    batch_size: int | None,
    stages: int,
    device: str | None,
    step: int | str | None,
    out: Path | None,
    labels: Path | None,
    tokenizer: Path | None,
    model: str | None,
    objective: str | None,
) -> None:
    """Predict what is in files, or comes from standard input, by a run.

    RUN is the directory of a run, and needs nothing else of its training. SOURCE is an image, a folder, a CSV, a file of JSON
    lines, a .npy array, or a text file or - (standard input) with one example a line: a text, the path of an image, or numbers.

    \b
    Examples:
        alrpc predict runs/flowers garden/ --top-k 3
        alrpc predict runs/imdb reviews.csv --column review --csv --out answers.csv
        echo "A wonderful film" | alrpc predict runs/imdb -

    Each answer is a JSON line, in the order of the input: what it is about (FILE, FILE:LINE or FILE[ROW]), label, probability, and
    the exit; with --top-k also the likeliest classes; of several labels those above 0.5, in CSV the probability of each; for a
    regression the values. Answers are printed for each micro-batch, so --batch-size 1 answers every line at once. The first example that
    cannot be read ends the command with exit code 1.
    """
    from alrpc.inference.sources import check_sources, choose_columns, read_examples

    with plain_endings():
        check_sources(sources)
        exit.check()
        _check(exit, stages, out)
        with heavy_imports():
            from alrpc.inference.pipelined import answer_in_stages
            from alrpc.inference.predict import predict as predict_examples
            from alrpc.inference.predictor import load_run
            from alrpc.system import local_device

        load = partial(load_run, run, model, objective=objective, labels=labels, tokenizer=tokenizer, step=step)
        predictor = load()
        predictor.to(local_device(device or predictor.config.device))
        chosen_exit = predictor.check_exit(exit.of(predictor))
        _check_stages(stages, chosen_exit)
        kind = predictor.carried.preprocessing.kind
        left_out = 0

        def leave_out(message: str) -> None:
            nonlocal left_out
            left_out += 1
            click.echo(f"alrpc: {message}", err=True)

        answered = predict_examples(
            predictor,
            read_examples(sources, kind, choose_columns(columns, kind, predictor.config.data.text_column), form),
            exit=chosen_exit,
            top_k=top_k,
            batch_size=batch_size,
            leave_out=leave_out if skip_bad else None,
            answer=partial(answer_in_stages, predictor, load, stages, exit=chosen_exit, top_k=top_k) if stages > 1 else None,
        )
        with _output(out) as write:
            if as_csv:
                write(_csv_header(predictor, top_k))
            for group in answered:
                write((_csv_lines if as_csv else _json_lines)(group, top_k))
                if is_lost():
                    break
        if left_out:
            click.echo(f"alrpc: left out {left_out} of the examples, which cannot be read", err=True)


def _check(exit: ChosenExit, stages: int, out: Path | None) -> None:
    if stages > 1 and exit.is_early:
        raise UsageError(f"--stages: got it beside --exit {exit.exit}, which answers in one process; leave one of them out")
    if out is not None and out.is_dir():
        raise UsageError(f"--out: {out} is a directory; give a file")


def _check_stages(stages: int, exit: int | Rule) -> None:
    if stages > 1 and stages > exit:  # of early exits there is one stage
        raise UsageError(f"--stages: got {stages}, but exit {exit} comes after {exit} components; use 1 to {exit}")


@contextmanager
def _output(out: Path | None) -> Iterator[Callable[[str], object]]:
    """A function that writes text to the file, which takes its place at the end, or to standard output."""
    if out is None:
        yield lambda text: (sys.stdout.write(text), sys.stdout.flush())
        return
    from alrpc.rundir import partial_file

    # a name of a file that is not UTF-8 is escaped, as on standard output; within JSON that is JSON's own escape
    with partial_file(out) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file.write


def _json_lines(group: Sequence[Named], top_k: int) -> str:
    from alrpc.inference.predict import answer_tree

    return "".join(json.dumps(answer_tree(name, answer, top_k), ensure_ascii=False) + "\n" for name, answer in group)


def _csv_header(predictor: Predictor, top_k: int) -> str:
    from alrpc.objectives.targets import Classes

    target, names = predictor.target, predictor.carried.classes
    if isinstance(target, Classes):
        top = range(2, min(top_k, target.count) + 1)
        more = [name for number in top for name in (f"label_{number}", f"probability_{number}")]
        return _csv_of([["input", "label", "probability", "exit", *more]])
    return _csv_of([["input", *(names or (f"value_{number}" for number in range(1, target.width + 1))), "exit"]])


def _csv_lines(group: Sequence[Named], top_k: int) -> str:
    from alrpc.inference.predict import rounded

    return _csv_of(
        [name, answer.label, rounded(answer.probability), answer.exit]
        + [value for label, share in answer.top[1:] for value in (label, rounded(share))]
        if answer.top
        else [name, *map(rounded, [share for _, share in answer.labels or ()] or answer.values), answer.exit]
        for name, answer in group
    )


def _csv_of(rows) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
