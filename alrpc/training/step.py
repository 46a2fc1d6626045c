"""Training of one component on one micro-batch. Both engines use this code through a stage; nothing else trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alrpc.objectives.base import Component, Microbatch
from alrpc.system import derive_seed, move
from alrpc.timing import Timing
from alrpc.training.feedback import Ring, connect
from alrpc.training.optimizer import Recipe, learning_rate, make_optimizer


@dataclass(frozen=True)
class Trainer:
    """A component in training: its optimizer, its recipe, its device, and the clock to which its time is charged."""

    component: Component
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    device: torch.device
    timing: Timing
    ring: Ring | None = None
    """The component's part in the feedback, if its objective has any."""

    @property
    def number(self) -> int:
        return self.component.number


@dataclass(frozen=True)
class ComponentOutput:
    """The result of a component's forward pass."""

    batch: Microbatch
    """The micro-batch that leaves the component, without graph."""
    losses: tuple[Tensor, ...]
    """The losses, scalars with graph, in the objective's order."""
    buffers: list[tuple[Tensor, Tensor]]
    """Each buffer of the component with its previous value, if an update may be skipped; else empty."""


def make_trainer(component: Component, recipe: Recipe, device: torch.device, timing: Timing | None = None) -> Trainer:
    """Move a component to its device and give it an optimizer."""
    move(component, device, recipe.channels_last).train()
    if recipe.compile:
        component.compute = torch.compile(component.compute)
    optimizer = make_optimizer(component.trained_groups(), recipe)
    ring = Ring(component) if component.objective.delay else None
    return Trainer(component, optimizer, recipe, device, timing or Timing(), ring)


def make_trainers(
    components: Sequence[Component], recipe: Recipe, device: torch.device, timing: Timing | None = None
) -> list[Trainer]:
    """A trainer for each of consecutive components; their time is charged to one clock."""
    timing = timing or Timing()
    trainers = [make_trainer(component, recipe, device, timing) for component in components]
    connect([trainer.ring for trainer in trainers if trainer.ring is not None])
    return trainers


def forward(trainer: Trainer, batch: Microbatch, step: int) -> ComponentOutput:
    """Run a component's forward pass and compute its local losses, with the component's own random numbers.

    Args:
        batch: the micro-batch that enters the component, on its device.
        step: the micro-batch's number in the run, from 0.
    """
    ring = trainer.ring
    if ring is not None:
        ring.hear()
    trainer.timing.enter("forward", trainer.number)
    may_skip = trainer.recipe.train.nonfinite == "skip"
    buffers = [(buffer, buffer.clone()) for buffer in trainer.component.buffers()] if may_skip else []
    seed_step(trainer.device, trainer.recipe.train.seed, trainer.number, step)
    with autocast(trainer.device, trainer.recipe.precision):
        leaving, losses = trainer.component(batch) if ring is None else ring.run(batch)
    trainer.timing.enter("handling", trainer.number)
    return ComponentOutput(leaving, losses, buffers)


def update(trainer: Trainer, output: ComponentOutput, step: int) -> tuple[tuple[Tensor, ...], bool]:
    """Run the backward pass, and an optimizer step if one is due.

    With accumulation over k micro-batches their k gradients are averaged before one optimizer step. The gradient of each group
    of parameters is clipped by itself. With `nonfinite: skip` a loss or gradient that is not finite leaves the component,
    including its buffers, unchanged.

    Returns:
        The losses, scalars without graph, and whether an optimizer step was due but skipped.
    """
    timing, recipe, number = trainer.timing, trainer.recipe, trainer.number
    timing.enter("backward", number)
    group = accumulation_step(step, recipe)
    with_graph = [loss for loss in output.losses if loss.requires_grad]
    torch.autograd.backward([loss / group.size for loss in with_graph] if group.size > 1 else with_graph)
    if trainer.ring is not None:
        trainer.ring.reply(group.size)

    timing.enter("update", number)
    skipped = group.last and not optimizer_step(trainer.optimizer, recipe, group.update, recipe.train.clip_norm)
    losses = tuple(loss.detach() for loss in output.losses)
    if recipe.train.nonfinite == "skip" and (skipped or not sum(losses).isfinite()):
        with torch.no_grad():
            for buffer, before in output.buffers:
                buffer.copy_(before)  # a running mean never recovers from a value that is not finite
    timing.enter("handling", number)
    return losses, skipped


@dataclass(frozen=True)
class AccumulationStep:
    """The position of a micro-batch in the group whose gradients are averaged before one optimizer step."""

    update: int
    """The number of that optimizer step in the run, from 0."""
    size: int
    """Number of micro-batches in the group; the last group of an epoch may be smaller, since no group spans two epochs."""
    last: bool
    """Whether the micro-batch is the last of its group, so that the optimizer step follows."""


def accumulation_step(step: int, recipe: Recipe) -> AccumulationStep:
    """The accumulation step of micro-batch `step` of the run, from 0."""
    accumulate = recipe.train.accumulate
    epoch, position = divmod(step, recipe.micro_batches)
    group, index = divmod(position, accumulate)
    size = min(accumulate, recipe.micro_batches - group * accumulate)
    return AccumulationStep(epoch * recipe.updates_per_epoch + group, size, index == size - 1)


def optimizer_step(optimizer: torch.optim.Optimizer, recipe: Recipe, number: int, clip_norm: float | None) -> bool:
    """Take optimizer step `number` of the run: clip each group's gradient, set the learning rates, step, clear the gradients.

    Returns:
        Whether the step was taken: with `nonfinite: skip`, gradients that are not finite are cleared without a step. This
        check synchronizes with a GPU.
    """
    if recipe.train.nonfinite == "skip" and not all(is_finite(group["params"]) for group in optimizer.param_groups):
        optimizer.zero_grad(set_to_none=True)
        return False
    for group in optimizer.param_groups:
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(group["params"], clip_norm)
        start = group["initial_lr"]
        group["lr"] = learning_rate(
            recipe.train.schedule, start, start * recipe.end_lr_ratio, number, recipe.updates, recipe.warmup
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return True


def is_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether all gradients of the parameters are finite."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return math.isfinite(nn.utils.get_total_norm(gradients, norm_type=math.inf).item()) if gradients else True


def seed_step(device: torch.device, seed: int, component: int, step: int) -> None:
    """Seed the device's default generator for one step of a component.

    Seeding at each step takes microseconds, and leaves no state to save: step k draws the same numbers whatever this process
    ran before.
    """
    value = derive_seed(seed, "component", component, "step", step)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(value)
    torch.default_generator.manual_seed(value)  # a block on a GPU may still draw on the CPU


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast context for a forward pass and its losses: `fp32`, or `bf16` where torch.autocast allows it.

    The backward pass needs no context; parameters stay float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
