"""Options that several commands share, the checks and imports with which a command begins, and how it ends."""

from __future__ import annotations

import gc
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from alrpc.errors import Interrupted, Stopped, UsageError, UserError, command_code, error_line
from alrpc.posix.streams import outlive_terminal

if TYPE_CHECKING:
    from alrpc.config import Config

LAST = "<last>"
"""The value of --resume when no directory follows it."""
OWN = {
    "model": "function that makes the run's blocks",
    "objective": "run's objective",
    "data": "function that loads the run's data",
}
Decorator = Callable[[Callable], Callable]


def set_option(
    help: str = "Set a field of the configuration, such as train.epochs=5. The option can be given again.",
) -> Decorator:
    """The option --set."""
    return click.option("--set", "overrides", metavar="SECTION.FIELD=VALUE", multiple=True, help=help)


def out_option(default: str) -> Decorator:
    """The option --out."""
    help = f"The directory to make; it must not exist, or be empty.  [default: {default}]"
    return click.option("--out", metavar="DIR", type=click.Path(readable=False, path_type=Path), help=help)


stages_option = click.option(
    "--stages",
    type=click.IntRange(min=1),
    help="The number of processes that train; at most one for each component.  [default: that of the configuration]",
)
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but the last line.")
verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Print a line for all losses and checkpoints, and the lines that the processes write into their logs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output instead of tables.")


def own_options(*sections: str) -> Decorator:
    """Options that name the user's own code: --model, --objective, --data."""

    def decorate(command: Callable) -> Callable:
        for section in reversed(sections):
            help = f"The {OWN[section]}, if it is your own; only then is it imported."
            command = click.option(f"--{section}", metavar="MODULE:FUNCTION", help=help)(command)
        return command

    return decorate


def carried_options(command: Callable) -> Callable:
    """Add the options --labels and --tokenizer."""
    labels = click.option(
        "--labels",
        metavar="FILE",
        type=click.Path(readable=False, path_type=Path),
        help="The names of the classes, a name a line, or a list in a .json; of a run of 0.1, which has none of its own.",
    )
    tokenizer = click.option(
        "--tokenizer",
        metavar="FILE",
        type=click.Path(readable=False, path_type=Path),
        help="A tokenizer.json of Hugging Face's tokenizers; likewise, for texts.",
    )
    return labels(tokenizer(command))


def _parse_checkpoint(context: click.Context, option: click.Parameter, text: str | None) -> int | str | None:
    if text is None or text in ("best", "last"):
        return text
    if not text.isdecimal() or not int(text):
        raise click.BadParameter(f"{text!r} is neither best, nor last, nor the number of a step.")
    return int(text)


checkpoint_option = click.option(
    "--step",
    metavar="best|last|N",
    callback=_parse_checkpoint,
    help="The checkpoint of the best epoch by the validation split, the last one, or that of a step.  [default: best if the run "
    "keeps it, else last]",
)


class Number(click.FloatRange):
    """A finite number within bounds."""

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):  # nan is within any bounds
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.  [default: that of the run]"
)


def source_options(command: Callable) -> Callable:
    """Add the options --config and --set."""
    config = click.option(
        "--config",
        "source",
        metavar="FILE",
        help="A YAML file, or the name of a configuration that ships with alrpc: see `alrpc list`.  [default: digits-mlp]",
    )
    return config(set_option()(command))


def column_option(texts: str) -> Decorator:
    """The option --column.

    Args:
        texts: the default for texts, for the help.
    """
    return click.option(
        "--column",
        "columns",
        metavar="NAME",
        multiple=True,
        help="The column of a CSV file, or the key of a JSON line, that holds the text or the image's path; several for numbers.  "
        f"[default: {texts}, image; all of them for numbers]",
    )


def with_stages(overrides: Sequence[str], stages: int | None) -> list[str]:
    """The overrides given by --set, and the one for --stages."""
    return [*overrides, *([f"pipeline.stages={stages}"] if stages is not None else [])]


def run_options(out: str) -> Decorator:
    """Add the options --config, --set, --print-config, --out and --quiet.

    Args:
        out: the default directory, for the help.
    """

    def decorate(command: Callable) -> Callable:
        shows = click.option(
            "--print-config", is_flag=True, help="Print the whole configuration as YAML, defaults included, and run nothing."
        )
        return source_options(shows(out_option(out)(quiet_option(command))))

    return decorate


step_option = click.option(
    "--step",
    type=click.IntRange(min=1),
    help="With --resume: continue from the checkpoint of this step instead of the last one.",
)


def resume_options(command: Callable) -> Callable:
    """Add the options --resume and --step."""
    resume = click.option(
        "--resume",
        metavar="[DIR]",
        is_flag=False,
        flag_value=LAST,
        type=click.Path(readable=False, path_type=Path),
        help="Continue the run in this directory, of either engine, from its last checkpoint. Without DIR: the last run below ./runs.",
    )
    return resume(step_option(command))


def choose_run(given: Path | None, option: str, *marks: str) -> Path:
    """The directory that was given, or else that of the last run, which is told on standard error; see `alrpc.rundir.last_run`."""
    from alrpc.rundir import last_run

    if given is not None and str(given) != LAST:
        return given
    run = last_run(option, *marks)
    click.echo(f"alrpc: the last run: {run}", err=True)
    return run


def parse_methods(text: str, known: Sequence[str]) -> list[str]:
    """Parse the comma-separated value of --methods.

    Raises:
        UsageError: naming the first unknown method.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    strange = [name for name in names if name not in known]
    if strange or not names or len(set(names)) < len(names):
        raise UsageError(f"--methods: got {(strange or [text])[0]!r}; give some of {','.join(known)}, each once")
    return names


def show_config(config: Config) -> None:
    """Print the resolved configuration as YAML."""
    from alrpc.config import to_yaml

    with heavy_imports():
        from alrpc.network import resolve
    config, _ = resolve(config)
    click.echo(to_yaml(config), nl=False)


def read_config(source: str | None, overrides: Sequence[str], resume: Path | None = None, out: Path | None = None) -> Config:
    """Read the configuration of a command, or of the run that it resumes.

    Raises:
        UsageError: for every mistake in it that can be found without importing torch.
    """
    from alrpc.checkpoint.changes import changed_config, check_resume_options
    from alrpc.config import check_config, load_config
    from alrpc.data import check_data
    from alrpc.models import check_model

    if resume is not None:
        check_resume_options(source, out)
        config = changed_config(resume, overrides)
    else:
        config = load_config(source, overrides)
    check_config(config)
    check_model(config.model)
    check_data(config.data)
    return config


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import torch, and what needs it, in the context.

    Ctrl-C counts when the imports have ended: an exception that a signal raises within them may be lost, in a C++ initialiser or in
    an `except` of a library. The garbage collector, which takes a seventh of their time, is off, since they leave no garbage.
    """
    interrupts: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # it may be ignored, as in the background of a shell script
        signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt


@contextmanager
def plain_endings(outlives_terminal: bool = False) -> Iterator[None]:
    """End the command with a one-line message for an exception that is meant for the user, and with its exit code.

    Args:
        outlives_terminal: whether the command trains, so that it goes on and ends well even if nobody sees what it prints.
    """
    if outlives_terminal:
        outlive_terminal()
    try:
        yield
    except (UserError, Stopped, Interrupted, SystemExit) as error:
        exit_with(error_line(error), command_code(error))
    except OSError as error:
        if error.filename is None:
            raise
        exit_with(error_line(error), command_code(error))
    except KeyboardInterrupt:
        exit_with("ended by SIGINT", 130)


def exit_with(message: str, code: int) -> NoReturn:
    """Print a one-line message and end the command."""
    print(f"alrpc: {message}", file=sys.stderr)
    sys.exit(code)
