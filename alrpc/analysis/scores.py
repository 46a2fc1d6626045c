"""Scores and how sure they are: 95 % intervals, the limits of their axes, and the line of chance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import TYPE_CHECKING

from alrpc.analysis.drawable import limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIDENCE = 0.95
NEAR = 0.5  # chance is on an axis if it is no further from the scores than this share of their range
ROOM = 0.15  # of the range of an axis, above and below the scores


def score_interval(metric: str, score: float, samples: int | None) -> tuple[float, float] | None:
    """The 95 % Wilson score interval of an accuracy on this number of independent samples.

    E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927; recommended by Brown, Cai &
    DasGupta, Interval Estimation for a Binomial Proportion, Statistical Science 16, 2001.

    Returns:
        The lower and the upper limit; None for another metric, or where the number of samples is not known.
    """
    if metric != "accuracy" or not samples or not 0 <= score <= 1:
        return None
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (score + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(score * (1 - score) / samples + (z / (2 * samples)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(deviation: float, count: int) -> float:
    """Half the width of the 95 % t interval of the mean of `count` ≥ 2 values, given their sample standard deviation."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(count)


def with_interval(metric: str, score: float, samples: int | None) -> str:
    """A score, and in brackets its interval where it has one."""
    ends = score_interval(metric, score, samples)
    return f"{score:.4f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def about_interval(samples: int | None = None) -> str:
    """What the brackets of `with_interval`, and the bands and bars of pictures, are; without a number for several data sets."""
    return f"95 % Wilson score interval on {f'{samples:,}' if samples else 'the'} test samples"


def bounds(metric: str, scores: list[float], samples: int | None) -> tuple[list[float], list[float]] | None:
    """The lower and the upper limits of several scores' intervals; None where they have none."""
    ends = [score_interval(metric, score, samples) for score in scores]
    return tuple(map(list, zip(*ends, strict=True))) if ends and None not in ends else None


def limit_scores(axes: Axes, scores: Iterable[float], chance: float | None, colour: str) -> None:
    """Fit the y axis to scores, or to the ends of their intervals, and mark chance with a line and its label.

    No score is cut off, however far it is below chance. Chance is left out where it is so far from all scores that these could no
    longer be told apart.
    """
    finite = [score for score in scores if math.isfinite(score)]
    shown = chance is not None and bool(finite) and min(finite) - NEAR * (max(finite) - min(finite)) <= chance
    if shown:
        axes.axhline(chance, color=colour, linestyle=(0, (4, 3)), linewidth=1, zorder=1.5)
        place = {"xy": (1, chance), "xycoords": ("axes fraction", "data"), "xytext": (0, -2), "textcoords": "offset points"}
        axes.annotate(f"chance {chance:.3g}", **place, ha="right", va="top", color=colour, fontsize="small")
    axes.set_ylim(*limits([*finite, chance] if shown else finite, ROOM))
