"""`bp` and `ddp`: the whole network in each process, each with its share of every micro-batch."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from alrpc.data.dataset import Dataset
from alrpc.data.loader import (
    Request,
    SplitName,
    evaluation_requests,
    load_micro_batches,
    requests,
    take_epochs,
    take_split,
)
from alrpc.experiments.baselines.engine import Engine, Role
from alrpc.experiments.baselines.model import SequentialModel
from alrpc.experiments.baselines.objective import loss
from alrpc.experiments.baselines.tuning import fastest, thread_choices
from alrpc.objectives.base import Tensors
from alrpc.training.step import accumulation_step, autocast, optimizer_step, seed_step

Batch = tuple[Tensors, Tensor, int]
"""Named tensors, labels, and the number of samples in the whole micro-batch."""


class DataParallel(Engine):
    """A process of `ddp`, or the only process of `bp`."""

    def __init__(self, role: Role, model: SequentialModel):
        super().__init__(role, model, [*range(1, len(model.layers) + 1)])
        self.wrapped: nn.Module = self.module

    def read(self, dataset: Dataset, batch_size: int, workers: int, only: SplitName | None = None) -> Iterator[Batch]:
        """Read this process' share of every micro-batch of the run's epochs, or of one split only; a share without samples holds one
        that does not count."""
        train = self.recipe.train
        asked = requests(dataset, batch_size, train) if only is None else evaluation_requests(dataset, only, batch_size, 0)
        sizes: deque[tuple[int, int]] = deque()  # sizes of what is read ahead: this process' share, and the whole micro-batch

        def wanted() -> Iterator[Request]:
            for request in asked:
                share = request.indices.tensor_split(self.world)[self.rank]
                sizes.append((len(share), len(request.indices)))
                yield replace(request, indices=share if len(share) else request.indices[:1])

        read = load_micro_batches(dataset, wanted(), train.seed, workers)
        if only is None:
            taken = take_epochs(read, dataset, batch_size, train.epochs, self.recipe.micro_batches)
        else:
            taken = take_split(read, dataset, only, batch_size, 0)
        for tensors, labels in taken:
            own, whole = sizes.popleft()
            yield tensors, labels[:own], whole

    def choose(self, batch: Batch, processes_here: int) -> dict:
        """Choose the number of threads by trial; wrap the module if there are other processes."""
        if self.world > 1:
            self.rehearse(batch, 0)
            unused = any(parameter.grad is None for parameter in self.module.parameters())
            self.module.zero_grad(set_to_none=True)
            self.wrapped = DistributedDataParallel(self.module, find_unused_parameters=unused)

        def trial(threads: int) -> None:
            torch.set_num_threads(threads)
            self.rehearse(batch, 0)
            self.module.zero_grad(set_to_none=True)

        threads, seconds = fastest(thread_choices(processes_here), trial, self.device)
        torch.set_num_threads(threads)
        return {"threads": threads, "tried_threads": seconds}

    def rehearse(self, batch: Batch, step: int, synchronise: bool = True, share: int = 1) -> None:
        """Run the forward and the backward pass; gradients are averaged over `share` accumulated micro-batches."""
        tensors, labels, samples = batch
        seed_step(self.device, self.recipe.train.seed, self.rank, step)
        inputs = [tensors[name].to(self.device) for name in self.module.takes]
        quiet = contextlib.nullcontext() if synchronise or self.world == 1 else self.wrapped.no_sync()
        with quiet:
            self.timing.enter("forward")
            with autocast(self.device, self.recipe.precision):
                output = self.wrapped(*inputs)[: len(labels)]
                value = loss(self.target, output, labels.to(self.device), samples)
            self.timing.enter("backward")
            # DistributedDataParallel averages over processes, the loss over samples
            (value * (self.world / share)).backward()

    def learn(self, batch: Batch, step: int) -> None:
        """Train on one micro-batch."""
        busy, began = time.thread_time(), time.perf_counter()
        turn = accumulation_step(step, self.recipe)
        self.rehearse(batch, step, synchronise=turn.last, share=turn.size)
        self.timing.enter("update")
        if turn.last:
            optimizer_step(self.optimizer, self.recipe, turn.update, self.recipe.train.clip_norm)
        if self.world > 1 and self.device.type == "cpu":  # this thread sleeps while it waits for gradients
            idle = (time.perf_counter() - began) - (time.thread_time() - busy)
            self.timing.move("backward", "waiting_to_receive", max(idle, 0.0))
        self.timing.enter("waiting_to_receive")

    def agree(self) -> None:
        """Copy the buffers of the first process to all others, as DistributedDataParallel does before each training step."""
        if self.world > 1:
            for buffer in self.module.buffers():
                distributed.broadcast(buffer, src=0)

    def score(self, batch: Batch) -> float:
        """The sum of the scores of this process' samples in a micro-batch."""
        tensors, labels, _ = batch
        with autocast(self.device, self.recipe.precision):
            output = self.module(*(tensors[name].to(self.device) for name in self.module.takes))[: len(labels)]
        return self.target.score(output, labels.to(self.device)) if len(labels) else 0.0
