"""Predictions of examples from files, in their order, with what is bad among them told or left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alrpc.errors import UserError
from alrpc.inference.predictor import Answer, Exit, Predictor, groups
from alrpc.inference.sources import Example

Named = tuple[str, Answer]
Rows = tuple[Sequence[str], Sequence[Any]]
"""What the examples of a micro-batch are called, and what they became."""
Answerer = Callable[[Iterable[tuple[Rows, Sequence[Any]]]], Iterator[tuple[Rows, list[Answer] | UserError]]]
NOT_FINITE = "the network's answer is not finite; its numbers are too large"
DIGITS = 6  # of a printed number


def predict(
    predictor: Predictor,
    examples: Iterable[Example],
    *,
    exit: Exit = None,
    top_k: int = 1,
    batch_size: int | None = None,
    leave_out: Callable[[str], None] | None = None,
    answer: Answerer | None = None,
) -> Iterator[list[Named]]:
    """Predict examples, micro-batch by micro-batch.

    Args:
        answer: answers micro-batches of prepared examples, in order, or tells why the network refuses one; None for this process, one by
            one.
        leave_out: called with the message about a bad example, which is then left out; None to end at the first one.

    Returns:
        For each micro-batch what its examples are called and their answers, in order.

    Raises:
        UserError: naming the place of a bad example, or of one that the network itself refuses, after the answers to those before it.
    """

    def bad(place: str, reason: str, cause: Exception | None = None) -> None:
        message = reason if reason.startswith(f"{place}:") else f"{place}: {reason}"
        if leave_out is None:
            raise UserError(message) from cause
        leave_out(message)

    def prepared() -> Iterator[tuple[str, Any]]:
        for place, read in examples:
            try:
                raw = read()
                ready = predictor.carried.preprocessing.prepare(raw)
            except UserError as error:
                bad(place, str(error), error)
            else:
                yield str(raw) if isinstance(raw, Path) else place, ready

    def answered_here(inputs: Sequence[Any]) -> list[Answer] | UserError:
        try:
            return predictor.answer_prepared(inputs, exit, top_k)
        except UserError as error:
            return error

    def here(micro_batches: Iterable[tuple[Rows, Sequence[Any]]]) -> Iterator[tuple[Rows, list[Answer] | UserError]]:
        return ((rows, answered_here(inputs)) for rows, inputs in micro_batches)

    def alone(inputs: Sequence[Any]) -> Iterator[Answer | UserError]:
        """The answers to the examples of a micro-batch that the network refuses, of which one may be why."""
        for each in inputs:
            answers = answered_here([each])
            yield answers if isinstance(answers, UserError) else answers[0]

    each_group = groups(prepared(), batch_size or predictor.config.data.batch_size)
    micro_batches = ((rows, rows[1]) for rows in (tuple(zip(*group, strict=True)) for group in each_group))
    for (names, inputs), answers in (answer or here)(micro_batches):
        answered: list[Named] = []
        for name, each in zip(names, alone(inputs) if isinstance(answers, UserError) else answers, strict=True):
            if isinstance(each, Answer) and is_finite(each):
                answered.append((name, each))
            else:
                if leave_out is None and answered:
                    yield answered
                bad(name, NOT_FINITE if isinstance(each, Answer) else str(each))
        yield answered


def is_finite(answer: Answer) -> bool:
    """Whether all numbers of an answer are."""
    named = answer.top + (answer.labels or ())
    return all(map(math.isfinite, [share for _, share in named] + list(answer.values)))


def answer_tree(name: str, answer: Answer, top_k: int) -> dict[str, Any]:
    """An answer as a tree for JSON: `input`, what it is about; `label`, `probability` and, if several are asked for, `top`, the
    likeliest classes; or `labels`, those of several that are predicted, each with its probability; or the `values` of a regression; and
    `exit`."""
    if answer.labels is not None:
        tree = {"input": name, "labels": _listed(answer.predicted), "exit": answer.exit}
        return {**tree, "top": _listed(answer.likeliest(top_k))} if top_k > 1 else tree
    if not answer.top:
        return {"input": name, "values": [rounded(value) for value in answer.values], "exit": answer.exit}
    tree = {"input": name, "label": answer.label, "probability": rounded(answer.top[0][1]), "exit": answer.exit}
    if top_k > 1:
        tree["top"] = _listed(answer.top)
    return tree


def _listed(named: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": label, "probability": rounded(share)} for label, share in named]


def rounded(value: float) -> float:
    """A number as it is printed."""
    return float(f"{value:.{DIGITS}g}")
