"""A finished run as a predictor: its network, which takes raw examples too and answers with the names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from alrpc.analysis.contents import Calibration
from alrpc.checkpoint.carried import Carried, read_carried
from alrpc.checkpoint.resume import Step, Trained, load_trained
from alrpc.errors import UsageError, UserError
from alrpc.inference.calibration import chosen, read_calibration
from alrpc.inference.early_exit import Agreement, EarlyExit, Rule, early_exit, predict_early
from alrpc.network import Network
from alrpc.objectives.targets import Classes, Labels
from alrpc.system import move, own_arithmetic
from alrpc.training.step import autocast

T = TypeVar("T")
Exit = int | Literal["auto", "agree"] | Rule | None
"""The number of an exit; `auto` for early exits as the run's calibration chooses them; `agree` for those by which successive exits agree;
another rule of early exits; None for the full path."""


@dataclass(frozen=True)
class Answer:
    """What an exit predicts for an example."""

    exit: int
    """The number of the exit, from 1."""
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest classes by name, each with its probability, the likeliest first; empty where there are no classes."""
    values: tuple[float, ...] = ()
    """The predicted values of a regression; else empty."""
    labels: tuple[tuple[str, float], ...] | None = None
    """Where a sample may have several labels, each label by name with its probability, in their order; else None."""

    @property
    def label(self) -> str | None:
        """The name of the likeliest class; None where there are no classes."""
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """The probability of the likeliest class; None where there are no classes."""
        return self.top[0][1] if self.top else None

    @property
    def predicted(self) -> tuple[tuple[str, float], ...]:
        """Of several labels those whose probability is above 0.5, each with it, the likeliest first."""
        return tuple(each for each in self.likeliest() if each[1] > 0.5)

    def likeliest(self, count: int | None = None) -> tuple[tuple[str, float], ...]:
        """So many of the labels, all for None, the likeliest first."""
        return tuple(sorted(self.labels or (), key=lambda each: -each[1])[:count])


class Predictor(Network):
    """The network of a run, in evaluation mode, with what the run carries to predict: preprocessing and names of classes.

    `predict` and its kin take tensors, as those of every network; `answers` takes raw examples.
    """

    def __init__(self, directory: Path, trained: Trained, labels: Path | None, tokenizer: Path | None):
        super().__init__(trained.network.components)
        self.directory, self.config, self.manifest = directory, trained.config, trained.manifest
        self._given = labels, tokenizer
        self._carried: Carried | None = None
        self._calibration: Calibration | None = None
        move(
            self, torch.device("cpu"), self.config.channels_last
        )  # as it was trained, since another layout may round otherwise
        self.eval()

    @property
    def carried(self) -> Carried:
        """What the run carries.

        Raises:
            UserError: naming a file that is missing or damaged, or what a run of 0.1 lacks.
        """
        if self._carried is None:
            self._carried = read_carried(self.directory, self.config, self.manifest, *self._given)
        return self._carried

    @property
    def calibration(self) -> Calibration:
        """What `alrpc calibrate` has found on held-out samples.

        Raises:
            UserError: when the run is not calibrated, the file is damaged, or it is of another checkpoint.
        """
        if self._calibration is None:
            self.check_classes()
            self._calibration = read_calibration(self.directory, self, self.manifest["step"])
        return self._calibration

    def early_exit(self, target_accuracy: float | None = None, budget: float | None = None) -> EarlyExit:
        """Which exits are tried, and how sure one must be of an example for it to leave, as the run's calibration recommends.

        Args:
            target_accuracy: so much of the full path's accuracy, on the held-out samples, with as little computing as possible.
            budget: or as good an accuracy as possible with at most this share of the full path's operations. With neither, what the
                run was calibrated for.

        Raises:
            UserError: as `calibration`; or when no choice of exits is so cheap.
        """
        return early_exit(self.calibration, chosen(self.calibration, target_accuracy, budget))

    def agreement(self, similarity: float = 0.8, patience: int = 1) -> Agreement:
        """The rule by which an example leaves once so many pairs of successive exits agree on it; it needs no calibration.

        Args:
            similarity: two exits of the same likeliest class agree if the cosine similarity of their outputs is above this.
            patience: how many pairs must agree.

        Raises:
            UsageError: where there are no classes, for a similarity that is not from -1 and below 1, or a patience with which no example
                could leave before the last exit.
        """
        self.check_classes()
        depth = len(self.components)
        if not -1 <= similarity < 1:
            raise UsageError(f"--similarity: got {similarity:g}; give a number from -1 and below 1")
        if patience < 1:
            raise UsageError(f"--patience: got {patience}; give 1 or more")
        if patience > depth - 2:
            most = f"; give at most {depth - 2}" if depth > 2 else ""
            raise UsageError(f"--patience: got {patience}, with which nothing can leave before the last of {depth} exits{most}")
        return Agreement(similarity, patience)

    def answers(
        self, examples: Iterable[Any], *, exit: Exit = None, top_k: int = 1, batch_size: int | None = None
    ) -> Iterator[Answer]:
        """Predict raw examples, in order, micro-batch by micro-batch; of the examples no more than a micro-batch is held.

        With the batch size, the device and the threads of the training, the answers are those of the run's evaluation.

        Args:
            examples: for images, paths, `PIL.Image`s, or arrays; for texts, strings; otherwise arrays, or dictionaries of arrays, of
                the shapes on which the network was trained. See `alrpc.data.preprocessing`.
            exit: l for the prediction after l components; None for the full path; `auto`, or what `early_exit` gives, for each
                example the first exit that is sure enough of it, by calibrated probabilities; `agree`, or what `agreement` gives, for
                the first one that agrees with that before it. These answers may differ from those of the exit alone in the last
                place, since fewer examples are computed at once after each exit.
            top_k: how many classes to name; all of them if there are fewer.
            batch_size: None for that of the training.

        Raises:
            UserError: naming the number of an example, from 0, that is not of the run's kind; an exit that there is not; inputs
                of which the network cannot compute its output.
        """
        exit = self.check_exit(exit)
        prepare = self.carried.preprocessing.prepare

        def prepared() -> Iterator[Any]:
            for number, example in enumerate(examples):
                try:
                    yield prepare(example)
                except UserError as error:
                    raise UserError(f"example {number}: {error}") from error

        for group in groups(prepared(), batch_size or self.config.data.batch_size):
            yield from self.answer_prepared(group, exit, top_k)

    def answer_prepared(self, prepared: Sequence[Any], exit: Exit = None, top_k: int = 1) -> list[Answer]:
        """The answers to a micro-batch of examples that the run's preprocessing has prepared.

        Raises:
            UserError: for an exit that there is not, or inputs of which the network cannot compute its output.
        """
        exit = self.check_exit(exit)
        device = next(self.parameters()).device
        tensors = self.carried.preprocessing.collate(prepared)
        arithmetic = own_arithmetic(device, self.config.threads)
        with arithmetic, torch.no_grad(), autocast(device, self.config.precision), told_by_name():
            on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
            if isinstance(exit, Rule):
                output, exits = predict_early(self, on_device, exit)
                return self._named(output, exit.probabilities(self.objective, output, exits), exits.tolist(), top_k)
            return self.answers_of(self(on_device, exit), exit, top_k)

    def answers_of(self, output: Tensor, exit: int, top_k: int) -> list[Answer]:
        """The answers by the decoded outputs of an exit, (N, classes) or (N, width)."""
        probabilities = self.objective.probabilities(output) if self.target.named else None
        return self._named(output, probabilities, [exit] * len(output), top_k)

    def _named(self, output: Tensor, probabilities: Tensor | None, exits: list[int], top_k: int) -> list[Answer]:
        if probabilities is None:
            return [Answer(exit, values=tuple(row)) for exit, row in zip(exits, output.float().tolist(), strict=True)]
        names = self.carried.classes
        if isinstance(self.target, Labels):
            shares = probabilities.tolist()
            return [Answer(exit, labels=tuple(zip(names, row, strict=True))) for exit, row in zip(exits, shares, strict=True)]
        order = output.argsort(dim=1, descending=True, stable=True)[:, :top_k].cpu()
        shares = probabilities.cpu().gather(1, order)
        return [
            Answer(exit, tuple((names[index], share) for index, share in zip(*row, strict=True)))
            for exit, *row in zip(exits, order.tolist(), shares.tolist(), strict=True)
        ]

    def check_exit(self, exit: Exit) -> int | Rule:
        """The number of an exit, the last one for None; or a rule of early exits: the run's own for `auto`, agreement for `agree`.

        Raises:
            UserError: for an exit that there is not, or where the run has no calibration that fits.
        """
        if isinstance(exit, Rule):
            return exit
        if exit == "auto":
            return self.early_exit()
        if exit == "agree":
            return self.agreement()
        count = len(self.components)
        if exit is not None and not 1 <= exit <= count:
            raise UsageError(f"--exit: got {exit}, but the network has exits 1 to {count}")
        return exit or count

    def check_classes(self) -> None:
        """Refuse, with a UsageError, early exits where there are no classes."""
        if not isinstance(self.target, Classes):
            raise UsageError(f"--exit: early exits need the probabilities of classes, but the run's target is {self.target}")


@contextmanager
def told_by_name() -> Iterator[None]:
    """Tell what the network's own code raises as a UserError, such as that for an index that an embedding does not have."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the network cannot compute these inputs: {type(error).__name__}: {reason}") from error


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many items, the last one of fewer; where an item raises a UserError, those before it come first."""
    group: list[T] = []
    try:
        for item in items:
            group.append(item)
            if len(group) == size:
                yield group
                group = []
    except UserError:
        if group:
            yield group
        raise
    if group:
        yield group


def load_run(
    directory: Path | str,
    model: str | None = None,
    *,
    objective: str | None = None,
    network: Network | None = None,
    labels: Path | str | None = None,
    tokenizer: Path | str | None = None,
    step: Step = None,
) -> Predictor:
    """Load the trained network of a run from its directory, as a predictor of raw examples too.

    Nothing else is needed: neither the data of the training nor a cache. What the run carries is read when it is first needed.

    Args:
        model, objective: `package.module:function` of the user's own function that builds the run's blocks, or of its objective, if
            there is one. Code is imported only when the caller names it, never because a file does.
        network: a network of the same blocks, for a run of `alrpc.train`, whose blocks only the caller can build; it is copied.
        labels: a file of the names of the classes, a name a line or a list in .json, instead of the run's own; runs of 0.1 have none.
        tokenizer: a tokenizer.json of Hugging Face's `tokenizers`, likewise, for texts.
        step: the step of the checkpoint; `last`; `best`, by a validation split; None for the best if the run keeps it, else the last.

    Returns:
        The network, in evaluation mode, on the CPU.

    Raises:
        UserError: naming a file that is missing or does not fit.
    """
    trained = load_trained(Path(directory), model, objective, network=network, step=step)
    return Predictor(Path(directory), trained, *(None if given is None else Path(given) for given in (labels, tokenizer)))
