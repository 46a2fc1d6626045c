"""`layer-placed`, `gpipe` and `1f1b`: consecutive layers in each process, through torch.distributed.pipelining."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from alrpc.experiments.baselines.engine import Engine, Role, own_layers
from alrpc.experiments.baselines.model import SequentialModel
from alrpc.experiments.baselines.objective import fill_up, fill_up_labels, loss
from alrpc.experiments.baselines.shapes import HEADER, Sizes, find_sizes, pack, static_arguments, unpack
from alrpc.experiments.baselines.tuning import fastest, thread_choices
from alrpc.objectives.base import Tensors
from alrpc.timing import Timing
from alrpc.training.step import accumulation_step, autocast, optimizer_step, seed_step

SCHEDULES = {"layer-placed": ScheduleGPipe, "gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
SCHEDULES_KEPT = 8  # each keeps receive buffers for all its micro-batches
Batch = tuple[Tensors, Tensor] | None
"""A micro-batch in the first process; None in the others."""


class TimedStage(PipelineStage):
    """A stage that times its computation; the rest of its time counts as waiting."""

    timing: Timing
    precision: str

    def forward_one_chunk(self, chunk: int, *args, **kwargs):
        self.timing.enter("forward", chunk + 1)
        try:
            with autocast(self.device, self.precision):
                return super().forward_one_chunk(chunk, *args, **kwargs)
        finally:
            self.timing.enter("waiting_to_receive")

    def backward_one_chunk(self, chunk: int, *args, **kwargs):
        self.timing.enter("backward", chunk + 1)
        try:
            return super().backward_one_chunk(chunk, *args, **kwargs)
        finally:
            self.timing.enter("waiting_to_receive")


class Pipelined(Engine):
    """A process of a pipeline: its layers, and schedules for the latest shapes of micro-batches, since a schedule has one shape."""

    def __init__(self, role: Role, model: SequentialModel):
        super().__init__(role, model, own_layers(role, model))
        self.inputs = self.module.takes if self.rank == 0 else ()
        self.is_last = self.rank == self.world - 1
        self.micro_batches = 1
        self.schedule = functools.lru_cache(SCHEDULES_KEPT)(self._make_schedule)
        self.sizes_between = functools.cache(functools.partial(find_sizes, self.module, self.recipe.precision))
        self.samples = 1  # number of samples in the micro-batch under way

    def choose(self, batch: Batch, processes_here: int) -> dict:
        """Choose, by trial, the number of threads and the number of pieces into which the schedule cuts a micro-batch."""

        def trial_threads(threads: int) -> None:
            torch.set_num_threads(threads)
            self.rehearse(batch, 0)
            self.module.zero_grad(set_to_none=True)

        def trial_micro_batches(count: int) -> None:
            self.micro_batches = count
            trial_threads(torch.get_num_threads())

        one_at_a_time = self.method == "layer-placed"
        if not one_at_a_time:
            self.micro_batches = 2 * self.world
        threads, tried_threads = fastest(thread_choices(1 if one_at_a_time else processes_here), trial_threads, self.device)
        torch.set_num_threads(threads)
        chosen = {"threads": threads, "tried_threads": tried_threads}
        if not one_at_a_time:
            choices = [self.world * factor for factor in (1, 2, 4)]
            self.micro_batches, chosen["tried_micro_batches"] = fastest(choices, trial_micro_batches, self.device)
            chosen["micro_batches"] = self.micro_batches
        self.schedule.cache_clear()
        return chosen

    def rehearse(self, batch: Batch, step: int, share: int = 1) -> None:
        """Run the forward and backward passes of all the schedule's micro-batches."""
        inputs, labels = self._announce(batch)
        self.samples *= share
        schedule = self._schedule(training=True)
        seed_step(self.device, self.recipe.train.seed, self.rank, step)
        schedule.step(*inputs, **({"target": labels, "losses": []} if self.is_last else {}))

    def learn(self, batch: Batch, step: int) -> None:
        """Train on one micro-batch."""
        self.timing.enter("waiting_to_receive")  # for the header from the first process, then for the neighbours
        turn = accumulation_step(step, self.recipe)
        self.rehearse(batch, step, share=turn.size)
        if turn.last:
            if self.recipe.train.clip_norm is not None:
                self._clip()
            self.timing.enter("update")
            optimizer_step(self.optimizer, self.recipe, turn.update, clip_norm=None)
            self.timing.enter("waiting_to_receive")

    def score(self, batch: Batch) -> float:
        """The sum of a micro-batch's scores in the last process, 0 in the others."""
        inputs, labels = self._announce(batch)
        with torch.no_grad():
            output = self._schedule(training=False).step(*inputs)
        return self.target.score(output[: self.samples], labels[: self.samples]) if self.is_last else 0.0

    def _announce(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Broadcast a micro-batch's shapes and labels; returns the first process' inputs and the labels, on the device.

        The samples are padded to a multiple of the schedule's micro-batches, which must have one size.
        """
        message = torch.zeros(HEADER, dtype=torch.int64)
        inputs: list[Tensor] = []
        if batch is not None:
            tensors, labels = batch
            count = -(-len(labels) // self.micro_batches) * self.micro_batches
            inputs = [fill_up(tensors[name], count) for name in self.inputs]
            message = pack((len(labels), count), tuple(tuple(tensor.shape[1:]) for tensor in inputs))
            labels = fill_up_labels(self.target, labels, count)
        distributed.broadcast(message, src=0)
        (self.samples, count), sizes = unpack(message, 2)
        self.shape = (count // self.micro_batches, sizes)
        if batch is None:
            labels = self.target.blank(count)
        distributed.broadcast(labels, src=0)
        return [tensor.to(self.device) for tensor in inputs], labels.to(self.device)

    def _schedule(self, training: bool) -> ScheduleGPipe | Schedule1F1B:
        """The schedule for the micro-batch that was announced last."""
        return self.schedule(training, self.micro_batches, *self.shape)

    def _make_schedule(self, training: bool, micro_batches: int, samples: int, sizes: Sizes) -> ScheduleGPipe | Schedule1F1B:
        static = static_arguments(self.module, self.rank, samples, self.sizes_between(sizes))
        stage = TimedStage(self.module, self.rank, self.world, self.device, **static)
        stage.timing, stage.precision = self.timing, self.recipe.precision
        if not training:
            return ScheduleGPipe(stage, micro_batches)

        def learn(output: Tensor, labels: Tensor) -> Tensor:
            return loss(self.target, output, labels, self.samples)

        return SCHEDULES[self.method](stage, micro_batches, loss_fn=learn, scale_grads=False)

    def _clip(self) -> None:
        """Clip the gradient of the whole network, whose norm is computed by all processes together."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        square = nn.utils.get_total_norm(gradients).square().cpu()
        distributed.all_reduce(square)
        nn.utils.clip_grads_with_norm_(self.module.parameters(), self.recipe.train.clip_norm, square.sqrt().to(self.device))
