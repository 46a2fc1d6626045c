"""Options that several commands share, and how a command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from alrpc.errors import STOPPED, Interrupted, Stopped, UserError

set_option = click.option(
    "--set",
    "overrides",
    metavar="SECTION.FIELD=VALUE",
    multiple=True,
    help="Override a field of the configuration; repeatable.",
)
stages_option = click.option(
    "--stages",
    type=click.IntRange(min=1),
    help="Processes that train, at most one a component.  [default: the configuration's]",
)


def source_options(command: Callable) -> Callable:
    """Add the options --config and --set."""
    config = click.option(
        "--config", "source", metavar="FILE", help="YAML file, or the name of one that ships with alrpc.  [default: digits-mlp]"
    )
    return config(set_option(command))


def with_stages(overrides: Sequence[str], stages: int | None) -> list[str]:
    """The overrides given by --set, and the one for --stages."""
    return [*overrides, *([f"pipeline.stages={stages}"] if stages is not None else [])]


def run_options(command: Callable) -> Callable:
    """Add the options --config, --set, --out and --quiet."""
    for option in (
        click.option("--quiet", is_flag=True, help="Show nothing but the last line."),
        click.option(
            "--out",
            metavar="DIR",
            type=click.Path(path_type=Path),
            help="Directory of the run.  [default: runs/<config>-<time>]",
        ),
        source_options,
    ):
        command = option(command)
    return command


def resume_options(command: Callable) -> Callable:
    """Add the options --resume and --step."""
    for option in (
        click.option(
            "--step",
            type=click.IntRange(min=1),
            help="With --resume: go on from the checkpoint of this step instead of the last.",
        ),
        click.option(
            "--resume",
            metavar="DIR",
            type=click.Path(path_type=Path),
            help="Go on with the run in this directory, of either engine, from its last checkpoint.",
        ),
    ):
        command = option(command)
    return command


def parse_methods(text: str, known: Sequence[str]) -> list[str]:
    """Parse the comma-separated value of --methods.

    Raises:
        UserError: naming the first unknown method.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    strange = [name for name in names if name not in known]
    if strange or not names or len(set(names)) < len(names):
        raise UserError(f"--methods: got {(strange or [text])[0]!r}; give some of {','.join(known)}, each once")
    return names


@contextmanager
def plain_endings() -> Iterator[None]:
    """End the command with a one-line message for a UserError, and with the exit code of a signal for an interruption.

    The code 75 is EX_TEMPFAIL of sysexits.h: the run has a checkpoint and can be resumed.
    """
    try:
        yield
    except Stopped as error:
        exit_with(str(error), STOPPED)
    except Interrupted as error:
        exit_with(str(error), 128 + error.number)
    except UserError as error:
        exit_with(str(error))
    except KeyboardInterrupt:
        exit_with("ended by SIGINT", 130)


def exit_with(message: str, code: int = 1) -> None:
    """Print a one-line message and end the command."""
    print(f"alrpc: {message}", file=sys.stderr)
    sys.exit(code)
