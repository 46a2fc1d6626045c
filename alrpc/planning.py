"""Which components belong to which stage: each one's cost, measured on this machine, and the split that is best for them."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from alrpc.assembly import build_network, local_device, recipe_for
from alrpc.baselines.tuning import cores
from alrpc.component import Step, Target
from alrpc.config import Config
from alrpc.data.dataset import Dataset, count_micro_batches
from alrpc.data.loader import load_micro_batches, requests
from alrpc.errors import UserError
from alrpc.process import keep_memory
from alrpc.training.sequential import train_micro_batch
from alrpc.training.update import Learner, make_learner, update

MICRO_BATCHES = 6  # that are measured, from all over an epoch, since their shapes may differ
REPEATS = 5  # of each, of which the median counts
WARM = 2  # updates before any is measured
STARTING = 120.0  # seconds that a neighbour may take to start
OPTIMIZER_STATES = {"adam": 2, "adamw": 2, "sgd": 1}  # numbers that an optimizer keeps for each parameter


@dataclass(frozen=True)
class Cost:
    """What one component costs: seconds of an update on a micro-batch, and bytes."""

    number: int
    seconds: float
    parameter_bytes: int
    """Parameters, buffers, gradients and optimizer states."""
    activation_bytes: int
    """What the forward pass keeps for the backward pass."""
    packet_bytes: int
    """What leaves it for the next component."""


@dataclass(frozen=True)
class Split:
    """Consecutive components in each stage, and what is predicted of them."""

    sizes: list[int]
    stage_seconds: list[float]
    stage_bytes: list[int]

    @property
    def step_seconds(self) -> float:
        """Of a micro-batch in the steady state: what the slowest stage takes."""
        return max(self.stage_seconds)

    @property
    def efficiency(self) -> float:
        """Share of the stages' time that is work when nothing but the slowest stage holds the others up."""
        return sum(self.stage_seconds) / (len(self.sizes) * self.step_seconds)


def measure_components(config: Config, dataset: Dataset, device: torch.device) -> list[Cost]:
    """The cost of every component, from training throw-away copies of them on the data set's micro-batches.

    On a CPU as many other processes train meanwhile as other stages will, since stages that share a memory slow each other down.
    Peak memory is not what is measured, so that it does not depend on the allocator: bytes are those of the tensors.
    """
    others = min(config.pipeline.stages, cores() // config.threads) - 1 if device.type == "cpu" else 0
    with neighbours(config, dataset, max(0, others)):
        return _measure_components(config, dataset, device)


@contextmanager
def neighbours(config: Config, dataset: Dataset, count: int) -> Iterator[None]:
    """So many processes that train the network's components all the while."""
    context = multiprocessing.get_context("spawn")
    first = torch.arange(min(config.data.batch_size, len(dataset.train)))
    told = context.Queue()
    arguments = (config, dataset.sample, dataset.target, *dataset.train.batch(first), told)
    processes = [context.Process(target=keep_busy, args=arguments, daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        for _ in processes:
            told.get(timeout=STARTING)
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def keep_busy(
    config: Config, sample: dict[str, Tensor], target: Target, tensors: dict[str, Tensor], labels: Tensor, told
) -> None:
    """Train on one micro-batch until killed; says so once it does."""
    keep_memory()
    torch.set_num_threads(config.threads)
    network, recipe, cpu = build_network(config, sample, target), recipe_for(config, 1), torch.device("cpu")
    learners = [make_learner(number, part, recipe, cpu) for number, part in enumerate(network.components, 1)]
    one_hot = target.represent(labels)
    for step in itertools.count():
        list(train_micro_batch(learners, tensors, one_hot, 0))
        if step == 0:
            told.put(step)


def _measure_components(config: Config, dataset: Dataset, device: torch.device) -> list[Cost]:
    recipe = recipe_for(config, count_micro_batches(dataset.train, config.data.batch_size))
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            network = build_network(config, dataset.sample, dataset.target)
            learners = [make_learner(number, part, recipe, device) for number, part in enumerate(network.components, 1)]
            wanted = [r for r in requests(dataset, config.data.batch_size, recipe.seed, 1) if r.split == "train"]
            every = max(1, len(wanted) // MICRO_BATCHES)
            costs: list[list[Cost]] = []
            for tensors, labels in islice(load_micro_batches(dataset, wanted[::every], recipe.seed), MICRO_BATCHES):
                target = dataset.target.represent(labels).to(device)
                tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
                costs.append(_measure(learners, tensors, target, WARM if not costs else 0))
    finally:
        torch.set_num_threads(threads)
    return [_mean(of_component) for of_component in zip(*costs, strict=True)]


def _measure(learners: list[Learner], tensors: dict[str, Tensor], target: Tensor, warm: int) -> list[Cost]:
    costs = []
    for learner in learners:
        handed_on: list[Step] = []
        for _ in range(warm):
            update(learner, tensors, target, 0, handed_on.append)
        kept = _Kept(learner)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            update(learner, tensors, target, 0, handed_on.append)
        seconds = []
        for _ in range(REPEATS):
            _finish(learner.device)
            began = time.perf_counter()
            update(learner, tensors, target, 0, lambda step: None)
            _finish(learner.device)
            seconds.append(time.perf_counter() - began)
        tensors, target = handed_on[0].tensors, handed_on[0].target
        parameters = sum(p.nbytes * (2 + OPTIMIZER_STATES[learner.recipe.optimizer]) for p in learner.component.parameters())
        buffers = sum(buffer.nbytes for buffer in learner.component.buffers())
        packet = sum(tensor.nbytes for tensor in (*tensors.values(), target))
        costs.append(Cost(learner.number, statistics.median(seconds), parameters + buffers, kept.total, packet))
    return costs


class _Kept:
    """Counts the bytes that autograd keeps, each storage once, parameters left out."""

    def __init__(self, learner: Learner):
        self.seen = {p.untyped_storage().data_ptr() for p in learner.component.parameters()}
        self.alive: list[Tensor] = []  # a storage that is let go may have its address taken by the next
        self.total = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.alive.append(tensor)
            self.total += storage.nbytes()
        return tensor


def _mean(costs: Sequence[Cost]) -> Cost:
    """Mean of the times, largest of the sizes."""
    return replace(
        costs[0],
        seconds=sum(cost.seconds for cost in costs) / len(costs),
        activation_bytes=max(cost.activation_bytes for cost in costs),
        packet_bytes=max(cost.packet_bytes for cost in costs),
    )


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def predict(costs: Sequence[Cost], sizes: Sequence[int], window: int) -> Split:
    """What a split would do. A stage holds its parameters, one component's activations and two windows of packets."""
    seconds, sizes_in_bytes, first = [], [], 0
    for size in sizes:
        part = costs[first : first + size]
        seconds.append(sum(cost.seconds for cost in part))
        sizes_in_bytes.append(stage_bytes(costs, first, first + size, window))
        first += size
    return Split(list(sizes), seconds, sizes_in_bytes)


def stage_bytes(costs: Sequence[Cost], first: int, end: int, window: int) -> int:
    """Memory of a stage with components first … end - 1 (from 0)."""
    part = costs[first:end]
    arriving = costs[first - 1].packet_bytes if first else 0
    packets = window * (arriving + part[-1].packet_bytes)
    return sum(cost.parameter_bytes for cost in part) + max(cost.activation_bytes for cost in part) + packets


def best_split(costs: Sequence[Cost], stages: int, window: int, memory_limit: int | None = None) -> Split:
    """The split whose slowest stage is as fast as any split's, by dynamic programming over the last stage's first component.

    Args:
        memory_limit: bytes that no stage may exceed; None for no limit.

    Raises:
        UserError: when there are fewer components than stages, or no split keeps every stage within the limit.
    """
    count = len(costs)
    if stages > count:
        raise UserError(f"pipeline.stages: got {stages}, but the model has {count} components; use 1 to {count}")
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost.seconds)
    never = float("inf")
    slowest = [[never] * (count + 1) for _ in range(stages + 1)]
    first_of_last = [[0] * (count + 1) for _ in range(stages + 1)]
    slowest[0][0] = 0.0
    for stage in range(1, stages + 1):
        for end in range(stage, count + 1):
            for first in range(stage - 1, end):
                if memory_limit is not None and stage_bytes(costs, first, end, window) > memory_limit:
                    continue
                candidate = max(slowest[stage - 1][first], before[end] - before[first])
                if candidate < slowest[stage][end]:
                    slowest[stage][end], first_of_last[stage][end] = candidate, first
    if slowest[stages][count] == never:
        largest = max(stage_bytes(costs, index, index + 1, window) for index in range(count))
        raise UserError(
            f"--memory-limit: no split into {stages} stages keeps each within it; a single component needs up to "
            f"{largest / (1 << 20):.0f} MiB; give a higher limit, or more stages"
        )
    sizes, end = [], count
    for stage in range(stages, 0, -1):
        first = first_of_last[stage][end]
        sizes.append(end - first)
        end = first
    return predict(costs, sizes[::-1], window)


def choose_split(config: Config, dataset: Dataset) -> list[int] | None:
    """The components of each stage that the configuration asks for, measured here and now if it says auto; None for even."""
    if config.pipeline.split != "auto":
        return config.pipeline.split
    here = config.device if torch.cuda.is_available() else "cpu"  # the coordinator's host may have no GPU
    costs = measure_components(config, dataset, local_device(here))
    return best_split(costs, config.pipeline.stages, config.pipeline.window).sizes
