"""The options of commands that predict: by which exit, or when a sample leaves early."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from alrpc.cli.options import Number
from alrpc.errors import UsageError

if TYPE_CHECKING:
    from alrpc.inference.predictor import Exit, Predictor

EARLY = ("auto", "agree")


@dataclass(frozen=True)
class ChosenExit:
    """What was asked for; None where nothing was."""

    exit: int | str | None
    """The number of an exit, or one of EARLY."""
    target_accuracy: float | None
    budget: float | None
    similarity: float | None
    patience: int | None

    @property
    def is_early(self) -> bool:
        return self.exit in EARLY

    def check(self) -> None:
        """Refuse, with a UsageError, options that do not go together."""
        check_one_wish(self.target_accuracy, self.budget)
        for rule, options in zip(EARLY, (("target_accuracy", "budget"), ("similarity", "patience")), strict=True):
            for name in options:
                if getattr(self, name) is not None and self.exit != rule:
                    raise UsageError(f"--{name.replace('_', '-')}: goes with --exit {rule}; give both")

    def of(self, predictor: Predictor) -> Exit:
        """The exit, or the rule of early exits, of a run; None where nothing was asked for.

        Raises:
            UserError: where a run has no such early exits.
        """
        if self.exit == "auto":
            return predictor.early_exit(self.target_accuracy, self.budget)
        if self.exit == "agree":
            given = {"similarity": self.similarity, "patience": self.patience}
            return predictor.agreement(**{name: value for name, value in given.items() if value is not None})
        return self.exit


def check_one_wish(target_accuracy: float | None, budget: float | None) -> None:
    """Refuse, with a UsageError, a target accuracy beside a budget."""
    if target_accuracy is not None and budget is not None:
        raise UsageError("--budget: got it beside --target-accuracy; give one of them")


class _Share(click.ParamType):
    """A number above 0 and up to 1."""

    name = "share"

    def convert(self, value: str | float, option: click.Parameter | None, context: click.Context | None) -> float:
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:
            self.fail(f"{value!r} is no share above 0 and up to 1, such as 0.98.", option, context)
        return share


SHARE = _Share()


def _parse_exit(context: click.Context, option: click.Parameter, text: str | None) -> int | str | None:
    if text is None or text in EARLY:
        return text
    if not text.isdecimal() or not int(text):
        raise click.BadParameter(f"{text!r} is neither the number of an exit, from 1, nor auto, nor agree.")
    return int(text)


def exit_options(help: str) -> Callable[[Callable], Callable]:
    """The option --exit and those of early exits; the command gets them as its argument `exit`, a `ChosenExit`."""
    options = (
        click.option("--exit", metavar="N|auto|agree", callback=_parse_exit, help=help),
        click.option(
            "--target-accuracy",
            metavar="SHARE",
            type=SHARE,
            help="With --exit auto: as cheap as possible with so much of the full path's accuracy on the held-out samples, such as "
            "0.98.  [default: what the run was calibrated for]",
        ),
        click.option(
            "--budget",
            metavar="SHARE",
            type=SHARE,
            help="With --exit auto: as accurate as possible with at most this share of the full path's operations, such as 0.5.",
        ),
        click.option(
            "--similarity",
            metavar="COSINE",
            type=Number(min=-1, max=1, max_open=True),
            help="With --exit agree: two exits of the same likeliest class agree if the cosine similarity of their outputs is above "
            "this.  [default: 0.8]",
        ),
        click.option(
            "--patience",
            metavar="N",
            type=click.IntRange(min=1),
            help="With --exit agree: how many pairs of exits must agree.  [default: 1]",
        ),
    )

    def decorate(command: Callable) -> Callable:
        @wraps(command)
        def with_exit(
            *,
            exit: int | str | None,
            target_accuracy: float | None,
            budget: float | None,
            similarity: float | None,
            patience: int | None,
            **others: Any,
        ) -> None:
            command(exit=ChosenExit(exit, target_accuracy, budget, similarity, patience), **others)

        for option in reversed(options):
            with_exit = option(with_exit)
        return with_exit

    return decorate
