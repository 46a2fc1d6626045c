"""Splits of components over stages: the predicted speed and memory of a split, and the search for the best one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from alrpc.config import Config
from alrpc.data.dataset import Dataset
from alrpc.errors import UserError
from alrpc.models.graph import split_consecutive
from alrpc.planning.costs import Cost, measure_components
from alrpc.system import local_device

MOST_EXACT = 256  # components for which the exact search takes a second or two at most


@dataclass(frozen=True)
class Partition:
    """A split into consecutive components for each stage, and its predicted speed and memory."""

    sizes: list[int]
    stage_seconds: list[float]
    stage_bytes: list[int]

    @property
    def step_seconds(self) -> float:
        """Seconds for a micro-batch in the steady state, which are those of the slowest stage."""
        return max(self.stage_seconds)

    @property
    def efficiency(self) -> float:
        """Share of the stages' time spent working, if only the slowest stage holds up the others."""
        return sum(self.stage_seconds) / (len(self.sizes) * self.step_seconds)


def predict(costs: Sequence[Cost], sizes: Sequence[int], window: int) -> Partition:
    """Predict the speed and memory of a split. A stage holds its parameters, the activations of one component and two windows of
    packets."""
    seconds, sizes_in_bytes, first = [], [], 0
    for size in sizes:
        part = costs[first : first + size]
        seconds.append(sum(cost.seconds for cost in part))
        sizes_in_bytes.append(stage_bytes(costs, first, first + size, window))
        first += size
    return Partition(list(sizes), seconds, sizes_in_bytes)


def stage_bytes(costs: Sequence[Cost], first: int, end: int, window: int) -> int:
    """Bytes of memory of a stage with components first … end - 1 (from 0)."""
    part = costs[first:end]
    arriving = costs[first - 1].packet_bytes if first else 0
    packets = window * (arriving + part[-1].packet_bytes)
    return sum(cost.parameter_bytes for cost in part) + max(cost.activation_bytes for cost in part) + packets


def best_split(costs: Sequence[Cost], stages: int, window: int, memory_limit: int | None = None) -> Partition:
    """The split whose slowest stage is fastest.

    Of more than MOST_EXACT components the split is that of `split_by_bisection`, if it keeps within the memory limit; its slowest
    stage is as fast. Otherwise it is that of the exact search, in O(stages · components²), which also prefers stages that are alike.

    Args:
        memory_limit: bytes that no stage may exceed; None for no limit.

    Raises:
        UserError: when there are fewer components than stages, or no split keeps every stage within the limit.
    """
    count = len(costs)
    if stages > count:
        raise UserError(f"pipeline.stages: got {stages}, but the model has {count} components; use 1 to {count}")

    def fits(first: int, end: int) -> bool:
        return memory_limit is None or stage_bytes(costs, first, end, window) <= memory_limit

    seconds = [cost.seconds for cost in costs]
    if count > MOST_EXACT:
        fast = predict(costs, split_by_bisection(seconds, stages), window)
        if memory_limit is None or max(fast.stage_bytes) <= memory_limit:
            return fast
    sizes = split_consecutive(seconds, stages, fits)
    if not sizes:
        largest = max(stage_bytes(costs, index, index + 1, window) for index in range(count))
        raise UserError(
            f"--memory-limit: no split into {stages} stages keeps each within it; a single component needs up to "
            f"{largest / (1 << 20):.0f} MiB; give a higher limit, or more stages"
        )
    return predict(costs, sizes, window)


def split_by_bisection(costs: Sequence[float], parts: int) -> list[int]:
    """Split costs into consecutive parts of which the most expensive is cheapest, in O(costs + parts · log(costs)).

    The cost of the most expensive part is bisected: a limit is high enough if parts that are filled up to it, one after another,
    hold all costs. Under the lowest such limit, each part then ends as near as it can to an even share of what is left.

    Args:
        costs: at least 0 each, and at least as many as parts.

    Returns:
        The number of costs in each part, at least 1.
    """
    before = [0.0, *accumulate(costs)]  # the cost of first … end - 1 is before[end] - before[first]
    count = len(costs)

    def latest_end(first: int, part: int, limit: float) -> int:
        """Where a part may end at the latest: within the limit, and with a cost left for each later part."""
        end = bisect_right(before, limit, lo=first + 1, key=lambda total: total - before[first]) - 1
        return min(end, count - (parts - part))

    def earliest_first(end: int, part: int, limit: float) -> int:
        """Where a part may begin at the earliest: within the limit, and with a cost left for each earlier part."""
        return max(bisect_left(before, -limit, hi=end, key=lambda total: total - before[end]), part - 1)

    def suffices(limit: float) -> bool:
        end = 0
        for part in range(1, parts + 1):
            end = latest_end(end, part, limit)
        return end == count

    low, high = max(end - first for first, end in pairwise(before)), before[-1]
    if suffices(low):
        high = low
    while low < (middle := low + (high - low) / 2) < high:
        low, high = (low, middle) if suffices(middle) else (middle, high)

    firsts = [count]  # where each part may begin at the earliest, so that it and the later ones keep within the limit
    for part in range(parts, 0, -1):
        firsts.insert(0, earliest_first(firsts[0], part, high))
    ends = [0]
    for part in range(1, parts + 1):
        first = ends[-1]
        share = before[first] + (before[-1] - before[first]) / (parts - part + 1)
        after = bisect_left(before, share, hi=count)
        nearest = after - (share - before[after - 1] <= before[after] - share)
        ends.append(min(max(nearest, firsts[part], first + 1), latest_end(first, part, high)))
    return [end - first for first, end in pairwise(ends)]


def choose_split(config: Config, dataset: Dataset) -> list[int] | None:
    """The number of components of each stage, as configured; measured on this machine for auto; None for an even split."""
    if config.pipeline.split != "auto":
        return config.pipeline.split
    here = config.device if torch.cuda.is_available() else "cpu"  # the coordinator's host may have no GPU
    costs = measure_components(config, dataset, local_device(here))
    return best_split(costs, config.pipeline.stages, config.pipeline.window).sizes
