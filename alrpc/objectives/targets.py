"""What a network learns to tell of a sample: its class, its labels of several, or values.

The task is decided once, by the data set's target, which has all that differs between tasks: the labels' form, loss, prediction, score.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from alrpc.errors import UsageError, UserError
from alrpc.reading.documents import shown


@dataclass(frozen=True)
class Classes:
    """A classification target: a class index of 0 … count - 1, represented as a one-hot vector."""

    count: int
    weights: tuple[float, ...] | None = field(default=None, compare=False, repr=False)
    """What each class counts in cross entropies, in the order of their indices; None for 1. A prediction does not know of them."""

    kind: ClassVar[str] = "classes"
    metric: ClassVar[str] = "accuracy"
    named: ClassVar[bool] = True
    """Whether what an output has for a sample are scores of things with names, which have probabilities."""

    def __post_init__(self):
        _check_size(self, "count")
        if self.weights is not None:
            _check_weights(self.weights, self.count)
            object.__setattr__(self, "weights", tuple(map(float, self.weights)))

    @property
    def width(self) -> int:
        return self.count

    @property
    def chance(self) -> float:
        """The accuracy of a guess, when all classes are equally frequent."""
        return 1 / self.count

    def blank(self, samples: int) -> Tensor:
        """Placeholder labels: (samples,), int64."""
        return torch.zeros(samples, dtype=torch.int64)

    def prepare(self, labels: Tensor) -> Tensor:
        """Labels of a split as losses, scores and metrics take them: (N,) int64."""
        return labels.long()

    def represent(self, labels: Tensor) -> Tensor:
        """Represent integer labels, (N,), as one-hot vectors, (N, count), float32."""
        return functional.one_hot(labels.long(), self.count).float()

    def cross_entropy(self, scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The cross entropy of scores, (N, count), averaged over the samples, each of which counts as its class weighs."""
        if self.weights is None:
            return functional.cross_entropy(scores, labels, label_smoothing=label_smoothing)
        weights = scores.new_tensor(self.weights)  # torch's own mean would divide by the weights of the micro-batch
        loss = functional.cross_entropy(scores, labels, weights, reduction="sum", label_smoothing=label_smoothing)
        return loss / len(labels)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The loss of an output, (N, count): its cross entropy."""
        return self.cross_entropy(output, labels)

    def probabilities(self, scores: Tensor) -> Tensor:
        """The probabilities by scores, (N, count), which add up to 1."""
        return scores.float().softmax(dim=1)

    def averageable(self, scores: Tensor) -> Tensor:
        """What of scores, (N, count), of several exits may be averaged: the logarithms of the probabilities."""
        return functional.log_softmax(scores.float(), dim=1)

    def decide(self, output: Tensor) -> Tensor:
        """The predicted class indices, (N,), of outputs, (N, count)."""
        return output.argmax(dim=-1)

    def score(self, output: Tensor, labels: Tensor) -> float:
        """The number of correct outputs among N; the accuracy is the sum over a data set, divided by its size."""
        return (self.decide(output) == labels).sum().item()


@dataclass(frozen=True)
class Labels:
    """A multi-label target: of `count` labels a sample may have any number, represented as a vector of 0 and 1.

    An output has a score for each label, the logarithm of its odds, and learns by binary cross entropy. A label is predicted where its
    probability, the sigmoid of the score, is above 0.5.
    """

    count: int

    kind: ClassVar[str] = "labels"
    metric: ClassVar[str] = "label_accuracy"
    named: ClassVar[bool] = True
    chance: ClassVar[None] = None  # to predict no label at all may be right of nearly all of them

    def __post_init__(self):
        _check_size(self, "count")

    @property
    def width(self) -> int:
        return self.count

    def blank(self, samples: int) -> Tensor:
        """Placeholder labels: (samples, count), float32."""
        return torch.zeros(samples, self.count)

    def prepare(self, labels: Tensor) -> Tensor:
        """Labels of a split as losses, scores and metrics take them: (N, count) float32."""
        return labels.float()

    def represent(self, labels: Tensor) -> Tensor:
        """Represent labels, (N, count), which are 0 or 1, by themselves, float32."""
        return labels.float()

    def cross_entropy(self, scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The binary cross entropy of scores, (N, count), averaged over labels and samples.

        Smoothing draws a label towards 0.5, as Keras's BinaryCrossentropy does.
        """
        labels = labels.to(scores.dtype)
        if label_smoothing:
            labels = labels * (1 - label_smoothing) + label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(scores, labels)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The loss of an output, (N, count): its binary cross entropy."""
        return self.cross_entropy(output, labels)

    def errors(self, output: Tensor, wanted: Tensor) -> Tensor:
        """The binary cross entropy of every number of an output, (N, count)."""
        return functional.binary_cross_entropy_with_logits(output, wanted, reduction="none")

    def probabilities(self, scores: Tensor) -> Tensor:
        """The probability of each label by scores, (N, count)."""
        return scores.float().sigmoid()

    def averageable(self, scores: Tensor) -> Tensor:
        """What of scores, (N, count), of several exits may be averaged: the logarithms of the odds, which they are."""
        return scores.float()

    def decide(self, output: Tensor) -> Tensor:
        """Whether each label is predicted, (N, count) bool, by outputs, (N, count)."""
        return self.probabilities(output) > 0.5

    def score(self, output: Tensor, labels: Tensor) -> float:
        """The share of labels that are right, summed over N outputs; divided by N it is the accuracy of the labels, which is 1 less
        the Hamming loss. What is not a number is wrong."""
        shares = self.probabilities(output)
        right = torch.where(labels > 0.5, shares > 0.5, shares <= 0.5)
        return right.sum().item() / self.count


@dataclass(frozen=True)
class Values:
    """A regression target: a vector of `width` floats, represented by itself."""

    width: int

    kind: ClassVar[str] = "values"
    metric: ClassVar[str] = "mse"
    named: ClassVar[bool] = False
    chance: ClassVar[None] = None

    def __post_init__(self):
        _check_size(self, "width")

    def blank(self, samples: int) -> Tensor:
        """Placeholder labels: (samples, width), float32."""
        return torch.zeros(samples, self.width)

    def prepare(self, labels: Tensor) -> Tensor:
        """Labels of a split as losses, scores and metrics take them: (N, width) float32."""
        return self.represent(labels)

    def represent(self, labels: Tensor) -> Tensor:
        """Represent labels, (N, width), or (N,) if the width is 1, as (N, width), float32."""
        return labels.float().reshape(len(labels), self.width)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The loss of an output, (N, width): its mean squared error."""
        return functional.mse_loss(output, labels)

    def errors(self, output: Tensor, wanted: Tensor) -> Tensor:
        """The squared error of every number of an output, (N, width)."""
        return (output - wanted).square()

    def decide(self, output: Tensor) -> Tensor:
        return output

    def score(self, output: Tensor, labels: Tensor) -> float:
        """The squared error, summed over N outputs and averaged over the width; divided by N it is the mean squared error."""
        return (output - self.represent(labels)).square().mean(dim=-1).double().sum().item()


Target = Classes | Labels | Values


def check_target(target: object) -> None:
    """Refuse, with a UserError, what is no target."""
    if not isinstance(target, Target):
        raise UserError(f"target: got {target!r}; give alrpc.Classes(count), alrpc.Labels(count) or alrpc.Values(width)")


def check_learns(name: str, target: Target, *kinds: type[Target]) -> None:
    """Refuse, with a UsageError, a target of another kind than those from which an objective learns."""
    if not isinstance(target, kinds):
        told = " or ".join(kind.kind for kind in kinds)
        raise UsageError(f"objective.name: {name} learns from {told}, but the target is {target}; use associated")


def _check_weights(weights: object, count: int) -> None:
    """Refuse, with a UserError, weights of classes that are not one finite, positive number for each of `count` classes."""
    numbers = list(weights) if isinstance(weights, Sequence) and not isinstance(weights, str) else []
    right = all(isinstance(each, int | float) and 0 < each < math.inf for each in numbers)
    if len(numbers) != count or not right:
        raise UserError(f"weights: got {shown(weights)} for {count} classes; give a number above 0 for each of them")


def _check_size(target: Target, field: str) -> None:
    """Make a target's number of classes, labels or values an int; raises UserError unless it is a whole number of at least 1."""
    value = getattr(target, field)
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise UserError(f"{type(target).__name__}: {field} is {value!r}; give a whole number of at least 1")
    object.__setattr__(target, field, number)
