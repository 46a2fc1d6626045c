"""What Matplotlib can draw of anything that a file may contain: text that is no formula, limits that are finite."""

from __future__ import annotations

import math
from collections.abc import Sequence


def plain(text: object) -> str:
    """Text that Matplotlib draws as it is, and does not take for a formula between two $."""
    return "".join(character if character.isprintable() else " " for character in str(text)).replace("$", r"\$")


def limits(values: Sequence[float], share: float) -> tuple[float, float]:
    """The limits of an axis: of the values that are numbers, with this share of their range as room above and below.

    There is room of a hundredth of the largest value at least, so that one sample does not look like a cliff.
    """
    numbers = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(numbers), max(numbers)
    room = max(share * (high - low), 0.01 * abs(high)) or 1.0
    return low - room, high + room
