"""What held-out samples tell about exits: a temperature, the quality of probabilities, and when a sample may leave by which exit.

Pure functions of arrays: L exits, N samples, C classes; exits are numbered from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HOTTEST = 1e3  # the largest temperature, and the inverse of the smallest one
BINS = 15  # of the expected calibration error, as in Guo et al.
TARGETS = 1 - np.geomspace(1, 1e-3, 100)  # the accuracies of leaving samples that are tried, from 0, denser towards 1


def fit_temperature(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The T for which softmax(outputs / T) gives the labels the largest likelihood.

    Guo, Pleiss, Sun & Weinberger, On calibration of modern neural networks, ICML 2017, section 4.2. The negative log-likelihood is
    convex in 1 / T, so that a search by intervals finds the smallest one.

    Args:
        outputs: (N, C). labels: (N,) class indices.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(logarithm: float) -> float:
        scores = log_softmax(outputs / np.exp(logarithm), axis=1)
        return -np.take_along_axis(scores, labels[:, None], axis=1).mean()

    most = np.log(HOTTEST)
    return float(np.exp(minimize_scalar(loss, bounds=(-most, most), method="bounded").x))


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The expected calibration error: the difference of confidence and accuracy within 15 bins of equal width, averaged over the
    samples (Guo et al., section 2).

    Args:
        confidence: (N,) the probability of the likeliest class. correct: (N,) whether it is the label.
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def failure_auroc(confidence: np.ndarray, correct: np.ndarray) -> float | None:
    """The area under the ROC curve of telling right answers from wrong ones by the confidence; None if all are right, or wrong."""
    from sklearn.metrics import roc_auc_score

    return None if correct.all() or not correct.any() else float(roc_auc_score(correct, confidence))


def accuracy_by_confidence(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """For each sample, (N,), the accuracy of samples of similar confidence.

    The accuracy is taken to rise with the confidence: isotonic regression, which pools neighbours where it does not (Zadrozny & Elkan,
    Transforming classifier scores into accurate multiclass probability estimates, KDD 2002).
    """
    from sklearn.isotonic import IsotonicRegression

    confidence = confidence.astype(np.float64)
    return IsotonicRegression().fit(confidence, correct.astype(np.float64)).predict(confidence)


def threshold(confidence: np.ndarray, accuracy: np.ndarray, target: float) -> float | None:
    """The least confidence whose samples reach an accuracy, by `accuracy_by_confidence`; None if no sample's do.

    A sample may leave if held-out samples of similar confidence are right often enough: performance control early exiting (PCEE),
    arXiv 2412.19325.
    """
    reaching = confidence[accuracy >= target]
    return float(reaching.min()) if len(reaching) else None


@dataclass(frozen=True)
class Costs:
    """What L components and their exits cost, in operations for a sample."""

    blocks: np.ndarray
    """(L,) those of each component."""
    exits: np.ndarray
    """(L,) those of an answer of each exit, beside the blocks'."""

    def leaving(self, tried: Sequence[int]) -> np.ndarray:
        """For each exit that is tried, in order: the operations of a sample that leaves by it, having tried all before it."""
        places = np.array(tried) - 1
        return self.blocks.cumsum()[places] + self.exits[places].cumsum()

    def share(self, tried: Sequence[int], left: np.ndarray) -> float:
        """The mean operations of samples, as a share of the full path's.

        Args:
            left: (N,) for each sample the place in `tried` of the exit by which it leaves.
        """
        return float(self.leaving(tried)[left].mean() / self.leaving([len(self.blocks)])[0])


@dataclass(frozen=True)
class Outcomes:
    """What all exits gave on N samples, and what they cost."""

    confidence: np.ndarray
    """(L, N) calibrated probability of the likeliest class."""
    correct: np.ndarray
    """(L, N) whether it is the label."""
    costs: Costs

    def left_by(self, tried: Sequence[int], thresholds: Sequence[float]) -> np.ndarray:
        """For each sample, (N,), the place in `tried` of the exit by which it leaves."""
        confident = self.confidence[np.array(tried) - 1] >= np.array(thresholds, dtype=self.confidence.dtype)[:, None]
        return confident.argmax(axis=0)  # the first one; all are confident enough for the last

    def accuracy(self, tried: Sequence[int], left: np.ndarray) -> float:
        return float(self.correct[np.array(tried)[left] - 1, np.arange(len(left))].mean())

    def choices(self, candidates: Sequence[int]) -> list[dict]:
        """The choices of exits and thresholds of which none is more accurate and cheaper than another, the cheapest first.

        For each of many accuracies that leaving samples must reach, the thresholds are those of PCEE, and the exits that are tried are
        chosen by cost: one after another is added, each time the one that makes the mean operations the fewest, while they become
        fewer. The full path, with no early exit, is the last choice unless another one is as accurate.

        Args:
            candidates: the exits that may be tried before the last one.
        """
        fitted = {exit: accuracy_by_confidence(self.confidence[exit - 1], self.correct[exit - 1]) for exit in candidates}
        found = [self._described([len(self.confidence)], {})]
        for target in TARGETS:
            limits = {exit: threshold(self.confidence[exit - 1], accuracy, target) for exit, accuracy in fitted.items()}
            limits = {exit: limit for exit, limit in limits.items() if limit is not None}
            found.append(self._described(self._tried(limits), limits))
        found.sort(key=lambda choice: (choice["compute"], -choice["accuracy"]))
        best, kept = -1.0, []
        for choice in found:
            if choice["accuracy"] > best:
                best = choice["accuracy"]
                kept.append(choice)
        return kept

    def _tried(self, limits: dict[int, float]) -> list[int]:
        tried = [len(self.confidence)]
        cost = 1.0
        while more := [sorted({*tried, exit}) for exit in limits if exit not in tried]:
            costs = [self.costs.share(each, self.left_by(each, [limits.get(exit, 0.0) for exit in each])) for each in more]
            if min(costs) >= cost:
                break
            cost = min(costs)
            tried = more[costs.index(cost)]
        return tried

    def _described(self, tried: list[int], limits: dict[int, float]) -> dict:
        thresholds = [limits.get(exit, 0.0) for exit in tried]
        left = self.left_by(tried, thresholds)
        shares = np.bincount(left, minlength=len(tried)) / len(left)
        return {
            "exits": tried,
            "thresholds": thresholds,
            "leaving": shares.tolist(),
            "accuracy": self.accuracy(tried, left),
            "compute": self.costs.share(tried, left),
            "time": None,
        }
