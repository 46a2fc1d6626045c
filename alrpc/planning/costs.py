"""The cost of each component, measured on this machine."""

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

from alrpc.config import Config
from alrpc.data.dataset import Dataset
from alrpc.data.loader import Request, epoch_size, load_micro_batches, training_batches
from alrpc.network import build_network
from alrpc.objectives.base import Microbatch
from alrpc.objectives.targets import Target
from alrpc.posix.forks import ensure_server
from alrpc.posix.parent import Parent
from alrpc.system import cores, keep_memory, synchronize
from alrpc.training.optimizer import make_recipe
from alrpc.training.step import Trainer, forward, make_trainers, update

MICRO_BATCHES = 6  # micro-batches to measure, spread over an epoch since their shapes may differ
REPEATS = 5  # measurements of each micro-batch; the median counts
WARM = 2  # updates before the first measurement
START_TIMEOUT = 120.0  # seconds that a neighbour may take to start


@dataclass(frozen=True)
class Cost:
    """The cost of one component: the seconds of an update on a micro-batch, and bytes of memory."""

    number: int
    seconds: float
    parameter_bytes: int
    """Bytes of parameters, buffers, gradients and optimizer states."""
    activation_bytes: int
    """Bytes of the tensors that the forward pass saves for the backward pass, or that are kept until feedback comes."""
    packet_bytes: int
    """Bytes of the tensors that it sends to the next component."""
    gradient_bytes: int = 0
    """Bytes of its parameters' gradients."""


def measure_components(config: Config, dataset: Dataset, device: torch.device) -> list[Cost]:
    """Measure the cost of every component by training temporary copies of them on the data set's micro-batches.

    On a CPU other processes train at the same time, one for each of the other stages, since stages that share memory bandwidth
    slow each other down. Bytes are the sizes of tensors instead of peak memory, so that they do not depend on the allocator.
    """
    others = min(config.pipeline.stages, cores() // config.threads) - 1 if device.type == "cpu" else 0
    with neighbours(config, dataset, max(0, others)):
        return _measure_components(config, dataset, device)


@contextmanager
def neighbours(config: Config, dataset: Dataset, count: int) -> Iterator[None]:
    """Run `count` processes that train the network's components until the end of the context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ensure_server()
    first = torch.arange(min(config.data.batch_size, len(dataset.train)))
    ready = context.Queue()
    arguments = (config, dataset.sample, dataset.target, *dataset.train.batch(first), ready)
    processes = [context.Process(target=keep_busy, args=arguments, daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        for _ in processes:
            ready.get(timeout=START_TIMEOUT)
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def keep_busy(
    config: Config, sample: dict[str, Tensor], target: Target, tensors: dict[str, Tensor], labels: Tensor, ready
) -> None:
    """Train on one micro-batch until killed; puts an item into `ready` after the first step."""
    keep_memory()
    torch.set_num_threads(config.threads)
    Parent().watch()
    network = build_network(config, sample, target)
    trainers = make_trainers(network.components, make_recipe(config, 1), torch.device("cpu"))
    batch = Microbatch(tensors, network.objective.begin(labels))
    for step in itertools.count():
        train_once(trainers, batch)
        if step == 0:
            ready.put(step)


def train_once(trainers: Sequence[Trainer], batch: Microbatch, step: int = 0) -> None:
    """Update all components, one after another, on a micro-batch on their device."""
    for trainer in trainers:
        output = forward(trainer, batch, step)
        update(trainer, output, step)
        batch = output.batch


def repeat_feedback(trainers: Sequence[Trainer], batch: Microbatch) -> None:
    """Let each component hear the same message about this micro-batch from now on, so that it can be trained by itself."""
    rings = [trainer.ring for trainer in trainers if trainer.ring is not None]
    for ring in rings:
        ring.kept.clear()
        ring.heard.clear()
    for _ in range(max((ring.lag for ring in rings), default=0)):
        train_once(trainers, batch)
    for ring in rings:
        if ring.lag:
            ring.receive = itertools.repeat(ring.heard[-1]).__next__


def _measure_components(config: Config, dataset: Dataset, device: torch.device) -> list[Cost]:
    threads, seed = torch.get_num_threads(), config.train.seed
    recipe = make_recipe(config, epoch_size(dataset, config.data.batch_size, config.train).micro_batches)
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            network = build_network(config, dataset.sample, dataset.target)
            trainers = make_trainers(network.components, recipe, device)
            train = config.train  # by steps the first ones are measured
            train = train if train.steps is None else train.model_copy(update={"evaluate_every": MICRO_BATCHES})
            batches = training_batches(dataset, config.data.batch_size, train, 0)
            wanted = [Request("train", 0, indices, number) for number, indices in batches]
            every = max(1, len(wanted) // MICRO_BATCHES)
            costs: list[list[Cost]] = []
            for _, _, tensors, labels in islice(load_micro_batches(dataset, wanted[::every], seed), MICRO_BATCHES):
                on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
                batch = Microbatch(on_device, network.objective.begin(labels.to(device)))
                costs.append(_measure(trainers, batch, WARM if not costs else 0))
    finally:
        torch.set_num_threads(threads)
    return [_mean(of_component) for of_component in zip(*costs, strict=True)]


def _measure(trainers: Sequence[Trainer], batch: Microbatch, warm: int) -> list[Cost]:
    repeat_feedback(trainers, batch)
    costs = []
    for trainer in trainers:
        for _ in range(warm):
            train_once([trainer], batch)
        kept = _Kept(trainer)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            output = forward(trainer, batch, 0)
            update(trainer, output, 0)
        seconds = []
        for _ in range(REPEATS):
            synchronize(trainer.device)
            began = time.perf_counter()
            train_once([trainer], batch)
            synchronize(trainer.device)
            seconds.append(time.perf_counter() - began)
        batch = output.batch
        states = sum(
            each.nbytes for of_one in trainer.optimizer.state.values() for each in of_one.values() if isinstance(each, Tensor)
        )
        parameters = states + sum(p.nbytes * (1 + p.requires_grad) for p in trainer.component.parameters())
        buffers = sum(buffer.nbytes for buffer in trainer.component.buffers())
        packet = sum(tensor.nbytes for tensor in (*batch.tensors.values(), *batch.beside.values()))
        waiting = sum(tensor.nbytes for tensor in trainer.ring.state().values()) if trainer.ring is not None else 0
        gradients = sum(p.nbytes for p in trainer.component.parameters() if p.requires_grad)
        costs.append(
            Cost(trainer.number, statistics.median(seconds), parameters + buffers, kept.total + waiting, packet, gradients)
        )
    return costs


class _Kept:
    """Counts the bytes that autograd saves: each storage once, without the parameters."""

    def __init__(self, trainer: Trainer):
        self.seen = {p.untyped_storage().data_ptr() for p in trainer.component.parameters()}
        self.alive: list[Tensor] = []  # keeps the storages alive, since a new one could reuse the address of a freed one
        self.total = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.alive.append(tensor)
            self.total += storage.nbytes()
        return tensor


def _mean(costs: Sequence[Cost]) -> Cost:
    """The mean of the times and the maximum of the sizes."""
    return replace(
        costs[0],
        seconds=sum(cost.seconds for cost in costs) / len(costs),
        activation_bytes=max(cost.activation_bytes for cost in costs),
        packet_bytes=max(cost.packet_bytes for cost in costs),
    )
