"""Splits of components over stages: the predicted speed and memory of a split, and the search for the best one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alrpc.config import Config
from alrpc.data.dataset import Dataset
from alrpc.errors import UserError
from alrpc.models.graph import split_consecutive
from alrpc.planning.costs import Cost, measure_components
from alrpc.system import local_device


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

    sizes = split_consecutive([cost.seconds for cost in costs], stages, fits)
    if not sizes:
        largest = max(stage_bytes(costs, index, index + 1, window) for index in range(count))
        raise UserError(
            f"--memory-limit: no split into {stages} stages keeps each within it; a single component needs up to "
            f"{largest / (1 << 20):.0f} MiB; give a higher limit, or more stages"
        )
    return predict(costs, sizes, window)


def choose_split(config: Config, dataset: Dataset) -> list[int] | None:
    """The number of components of each stage, as configured; measured on this machine for auto; None for an even split."""
    if config.pipeline.split != "auto":
        return config.pipeline.split
    here = config.device if torch.cuda.is_available() else "cpu"  # the coordinator's host may have no GPU
    costs = measure_components(config, dataset, local_device(here))
    return best_split(costs, config.pipeline.stages, config.pipeline.window).sizes
