"""Options that several commands have, and how a command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click


def source_options(command: Callable) -> Callable:
    """--config and --set."""
    for option in (
        click.option(
            "--set",
            "overrides",
            metavar="SECTION.FIELD=VALUE",
            multiple=True,
            help="Override a field of the configuration; repeatable.",
        ),
        click.option(
            "--config",
            "source",
            metavar="FILE",
            help="YAML file, or the name of one that ships with alrpc.  [default: digits-mlp]",
        ),
    ):
        command = option(command)
    return command


def run_options(command: Callable) -> Callable:
    """--config, --set, --out and --quiet."""
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


def exit_with(message: str, code: int = 1) -> None:
    """End the command with one line that says why."""
    print(f"alrpc: {message}", file=sys.stderr)
    sys.exit(code)
