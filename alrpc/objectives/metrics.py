"""Metrics of what an exit predicts, beside the target's own: by scikit-learn, or by a function of the user's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from alrpc.config.own_code import call_own, did_you_mean, import_function
from alrpc.errors import UsageError
from alrpc.objectives.targets import Classes, Labels, Target, Values
from alrpc.reading.regular import MIB

FIELD = "train.metrics"
MOST = 256 * MIB  # of an exit's outputs on a split, all of which a metric takes at once
Metric = Callable[[np.ndarray, np.ndarray], float]
"""(labels, outputs) -> value: (N,) int64 and probabilities (N, classes) float32; 0 and 1, (N, labels), and probabilities of the same
shape, float32; or values, (N, width) float32, both."""


def macro_f1(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The F1 score, averaged over the classes."""
    from sklearn.metrics import f1_score

    return f1_score(labels, outputs.argmax(1), average="macro", zero_division=0)


def balanced_accuracy(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The share of each class that is right, averaged over the classes."""
    from sklearn.metrics import balanced_accuracy_score

    return balanced_accuracy_score(labels, outputs.argmax(1))


def auroc(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The area under the receiver operating characteristic; of more than two classes, of each against the others, averaged over
    those that occur (Fawcett, An introduction to ROC analysis, 2006, section 9)."""
    classes = [1] if outputs.shape[1] == 2 else range(outputs.shape[1])
    return auroc_of_labels(np.stack([labels == each for each in classes], axis=1), outputs[:, classes])


def auroc_of_labels(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The area under the receiver operating characteristic, averaged over the labels that some samples have and some have not."""
    from sklearn.metrics import roc_auc_score

    areas = [roc_auc_score(has, shares) for has, shares in zip(labels.T, outputs.T, strict=True) if 0 < has.sum() < len(has)]
    return float(np.mean(areas)) if areas else math.nan


def average_precision(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The average precision, averaged over the labels that occur."""
    from sklearn.metrics import average_precision_score

    found = [average_precision_score(has, shares) for has, shares in zip(labels.T, outputs.T, strict=True) if has.any()]
    return float(np.mean(found)) if found else math.nan


def micro_f1_of_labels(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The F1 score of all labels of all samples at once; those whose probability is above 0.5 are predicted."""
    from sklearn.metrics import f1_score

    return f1_score(labels.ravel() > 0.5, outputs.ravel() > 0.5, zero_division=0)


def macro_f1_of_labels(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The F1 score of each label, averaged over the labels."""
    return float(np.mean([micro_f1_of_labels(*column) for column in zip(labels.T, outputs.T, strict=True)]))


def log_loss(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The negative logarithm of the probability of the true class, averaged over the samples."""
    from sklearn.metrics import log_loss as of_probabilities

    return of_probabilities(labels, outputs.astype(np.float64), labels=range(outputs.shape[1]))


def top(k: int) -> Metric:
    """The share of samples whose class is among the k likeliest."""

    def share(labels: np.ndarray, outputs: np.ndarray) -> float:
        from sklearn.metrics import top_k_accuracy_score

        return top_k_accuracy_score(labels, outputs, k=k, labels=range(outputs.shape[1]))

    return share


def mae(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The mean absolute error."""
    from sklearn.metrics import mean_absolute_error

    return mean_absolute_error(labels, outputs)


def r2(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The share of the labels' variance that is explained, averaged over the width."""
    from sklearn.metrics import r2_score

    return r2_score(labels, outputs)


RANKS = {"top3": 3, "top5": 5}
OF_CLASSES: dict[str, Metric] = {
    **{metric.__name__: metric for metric in (macro_f1, balanced_accuracy, auroc, log_loss)},
    **{name: top(k) for name, k in RANKS.items()},
}
OF_LABELS: dict[str, Metric] = {
    "micro_f1": micro_f1_of_labels,
    "macro_f1": macro_f1_of_labels,
    "average_precision": average_precision,
    "auroc": auroc_of_labels,
}
OF_VALUES: dict[str, Metric] = {"mae": mae, "r2": r2}
KNOWN: dict[type[Target], dict[str, Metric]] = {Classes: OF_CLASSES, Labels: OF_LABELS, Values: OF_VALUES}


def check_metrics(names: Sequence[str], target: Target, samples: int) -> None:
    """Refuse metrics that a target does not have or that cannot be imported, or outputs of so many samples that cannot all be kept,
    with a UsageError."""
    known = KNOWN[type(target)]
    for name in names:
        if ":" in name:
            import_function(name, FIELD)
        elif name not in known:
            near = did_you_mean(name, known)
            raise UsageError(
                f"{FIELD}: got {name}, which {target} does not have{near}; use {', '.join(known)}, or one of your own"
            )
        if RANKS.get(name, 0) >= target.width:
            raise UsageError(f"{FIELD}: got {name}, but there are {target.width} classes, so it would always be 1")
    size = samples * target.width * 4
    if names and size > MOST:
        raise UsageError(
            f"{FIELD}: the outputs of every exit for a whole split are kept for them, {size / MIB:,.0f} MiB for {samples:,} samples of "
            f"{target}; at most {MOST // MIB} MiB can be; leave the field out"
        )


def measure(name: str, target: Target, labels: Tensor, outputs: Tensor) -> float:
    """The value of a metric for an exit's outputs; nan where it is not defined.

    Args:
        labels: (N,) int64 class indices, or labels or values, (N, width) float32.
        outputs: (N, width) probabilities, or values, float32.

    Raises:
        UsageError: when a function of the user's own raises, or gives no number.
    """
    if not outputs.isfinite().all():
        return math.nan
    if ":" not in name:
        metric = KNOWN[type(target)][name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that do not occur in a small split
            return float(metric(labels.numpy(), outputs.numpy()))
    given = call_own(import_function(name, FIELD), name, FIELD, labels.numpy(), outputs.numpy())
    try:
        return float(given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{FIELD}: {name} gave {type(given).__name__}; it must give a number") from error
