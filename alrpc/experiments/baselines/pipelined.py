"""`layer-placed`, `gpipe` and `1f1b`: consecutive layers in each process, through torch.distributed.pipelining."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from alrpc.data.dataset import Dataset
from alrpc.data.loader import SplitName, evaluation_requests, load_micro_batches, requests, take_epochs, take_split
from alrpc.experiments.baselines.model import ModelPart, SequentialModel
from alrpc.experiments.baselines.objective import fill_up, fill_up_labels, loss
from alrpc.experiments.baselines.tuning import fastest, thread_choices
from alrpc.objectives.base import Classes, Target, Tensors
from alrpc.pipeline.placement import split_components
from alrpc.system import move
from alrpc.timing import Timing
from alrpc.training.optimizer import Recipe, make_optimizer
from alrpc.training.step import accumulation_step, autocast, optimizer_step, seed_step

SCHEDULES = {"layer-placed": ScheduleGPipe, "gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
HEADER = 64  # numbers in the header of a micro-batch: samples, padded samples, then rank and sizes of each tensor
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


class Pipelined:
    """A process of a pipeline: its layers, and a schedule for each shape of micro-batch, since a schedule has a fixed shape."""

    def __init__(
        self,
        method: str,
        model: SequentialModel,
        rank: int,
        world: int,
        device: torch.device,
        target: Target,
        recipe: Recipe,
        split: list[int] | None,
    ):
        self.method, self.rank, self.world, self.device, self.target, self.recipe = method, rank, world, device, target, recipe
        blocks = split_components(len(model.layers) - 1, world, split)
        self.layers = [*blocks[rank], *([len(model.layers)] if rank == world - 1 else [])]
        self.module = move(ModelPart(model, [number - 1 for number in self.layers]), device, recipe.channels_last)
        if recipe.compile:
            self.module.compile()
        self.inputs = self.module.takes if rank == 0 else ()
        self.is_last = rank == world - 1
        self.optimizer = make_optimizer({"lr": list(self.module.parameters())}, recipe)
        self.timing = Timing()
        self.timing.spans.watch(device)
        self.micro_batches = 1
        self.schedules: dict[tuple, ScheduleGPipe | Schedule1F1B] = {}
        self.samples = 1  # number of samples in the micro-batch under way

    def read(self, dataset: Dataset, batch_size: int, workers: int, only: SplitName | None = None) -> Iterator[Batch]:
        """Read every micro-batch of the run's epochs, or of one split only; called in the first process."""
        seed, epochs = self.recipe.train.seed, self.recipe.train.epochs
        if only is None:
            read = load_micro_batches(dataset, requests(dataset, batch_size, seed, epochs), seed, workers)
            return take_epochs(read, dataset, batch_size, epochs, self.recipe.micro_batches)
        read = load_micro_batches(dataset, evaluation_requests(dataset, only, batch_size, 0), seed, workers)
        return take_split(read, dataset, only, batch_size, 0)

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
        self.schedules.clear()
        return chosen

    def rehearse(self, batch: Batch, step: int, share: int = 1) -> None:
        """Run the forward and backward passes of all the schedule's micro-batches."""
        inputs, labels = self._announce(batch)
        seed_step(self.device, self.recipe.train.seed, self.rank, step)
        self.samples *= share
        self._schedule(inputs, True).step(*inputs, **({"target": labels, "losses": []} if self.is_last else {}))

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

    def agree(self) -> None:
        """Nothing to do, since each layer is in one process only."""

    def score(self, batch: Batch) -> float:
        """The sum of a micro-batch's scores in the last process, 0 in the others."""
        inputs, labels = self._announce(batch)
        with torch.no_grad():
            output = self._schedule(inputs, False).step(*inputs)
        return self.target.score(output[: self.samples], labels[: self.samples]) if self.is_last else 0.0

    def _announce(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Broadcast a micro-batch's shapes and labels; returns the first process' inputs and the labels, on the device.

        The samples are padded to a multiple of the schedule's micro-batches, which must have one size.
        """
        header = torch.zeros(HEADER, dtype=torch.int64)
        inputs: list[Tensor] = []
        if batch is not None:
            tensors, labels = batch
            count = -(-len(labels) // self.micro_batches) * self.micro_batches
            inputs = [fill_up(tensors[name], count) for name in self.inputs]
            shapes = [number for tensor in inputs for number in (tensor.ndim, *tensor.shape)]
            header[: 2 + len(shapes)] = torch.tensor([len(labels), count, *shapes])
            labels = fill_up_labels(self.target, labels, count)
        distributed.broadcast(header, src=0)
        self.samples, count = header[:2].tolist()
        self.shapes = tuple(header[2:].tolist())
        if batch is None:
            is_class = isinstance(self.target, Classes)
            labels = torch.empty(count, dtype=torch.int64) if is_class else torch.empty(count, self.target.width)
        distributed.broadcast(labels, src=0)
        return [tensor.to(self.device) for tensor in inputs], labels.to(self.device)

    def _schedule(self, inputs: list[Tensor], training: bool):
        key = (training, self.micro_batches, self.shapes)
        if key not in self.schedules:
            stage = TimedStage(self.module, self.rank, self.world, self.device)
            stage.timing, stage.precision = self.timing, self.recipe.precision
            if training:
                engine, learn = SCHEDULES[self.method], lambda output, labels: loss(self.target, output, labels, self.samples)
                self.schedules[key] = engine(stage, self.micro_batches, loss_fn=learn, scale_grads=False)
            else:
                self.schedules[key] = ScheduleGPipe(stage, self.micro_batches)
        return self.schedules[key]

    def _clip(self) -> None:
        """Clip the gradient of the whole network, whose norm is computed by all processes together."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        square = nn.utils.get_total_norm(gradients).square().cpu()
        distributed.all_reduce(square)
        nn.utils.clip_grads_with_norm_(self.module.parameters(), self.recipe.train.clip_norm, square.sqrt().to(self.device))
