"""The only code that trains: one component, one micro-batch. Both engines reach it through a stage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from alrpc.objectives.base import Component, Microbatch
from alrpc.system import derive_seed
from alrpc.timing import Timing
from alrpc.training.optimizer import Recipe, accumulation_step, make_optimizer, optimizer_step


@dataclass(frozen=True)
class Trainer:
    """A component that trains: its optimizer, its recipe, the device that it lives on, and the clock that its time is charged to."""

    component: Component
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    device: torch.device
    timing: Timing

    @property
    def number(self) -> int:
        return self.component.number


@dataclass(frozen=True)
class ComponentOutput:
    """What a component's forward pass has made of a micro-batch."""

    batch: Microbatch
    """What leaves the component, without graph."""
    losses: tuple[Tensor, ...]
    """Scalars with graph, in the objective's order."""
    buffers: list[tuple[Tensor, Tensor]]
    """Each of the component's buffers with its value before, where an update may be skipped; else empty."""


def make_trainer(component: Component, recipe: Recipe, device: torch.device, timing: Timing | None = None) -> Trainer:
    """Move a component to its device and give it an optimizer."""
    component.to(device).train()
    if recipe.compile:
        component.compute = torch.compile(component.compute)
    groups = component.objective.parameter_groups(component)
    return Trainer(component, make_optimizer(groups, recipe), recipe, device, timing or Timing())


def make_trainers(
    components: Sequence[Component], recipe: Recipe, device: torch.device, timing: Timing | None = None
) -> list[Trainer]:
    """A trainer for each component; their time is charged to one clock."""
    timing = timing or Timing()
    return [make_trainer(component, recipe, device, timing) for component in components]


def forward(trainer: Trainer, batch: Microbatch, step: int) -> ComponentOutput:
    """A component's forward pass and its local losses, on random numbers of its own.

    Args:
        batch: what enters the component, on its device.
        step: the micro-batch's number in the run, from 0.
    """
    trainer.timing.enter("forward", trainer.number)
    may_skip = trainer.recipe.train.nonfinite == "skip"
    buffers = [(buffer, buffer.clone()) for buffer in trainer.component.buffers()] if may_skip else []
    seed_step(trainer.device, trainer.recipe.train.seed, trainer.number, step)
    with autocast(trainer.device, trainer.recipe.precision):
        leaving, losses = trainer.component(batch)
    trainer.timing.enter("handling", trainer.number)
    return ComponentOutput(leaving, losses, buffers)


def update(trainer: Trainer, output: ComponentOutput, step: int) -> tuple[tuple[Tensor, ...], bool]:
    """Learn from a forward pass: backward pass, and an optimizer step where one is due.

    With accumulation over k micro-batches the gradients of k are averaged before one optimizer step. Each group of parameters
    has its gradient clipped by itself. With `nonfinite: skip` a loss or gradient that is not finite leaves the component, its
    buffers included, as it was.

    Returns:
        The losses, scalars without graph, and whether an optimizer step was due but skipped.
    """
    timing, recipe, number = trainer.timing, trainer.recipe, trainer.number
    timing.enter("backward", number)
    turn = accumulation_step(step, recipe)
    with_graph = [loss for loss in output.losses if loss.requires_grad]
    torch.autograd.backward([loss / turn.size for loss in with_graph] if turn.size > 1 else with_graph)

    timing.enter("update", number)
    skipped = turn.last and not optimizer_step(trainer.optimizer, recipe, turn.update, recipe.train.clip_norm)
    losses = tuple(loss.detach() for loss in output.losses)
    if recipe.train.nonfinite == "skip" and (skipped or not sum(losses).isfinite()):
        with torch.no_grad():
            for buffer, before in output.buffers:
                buffer.copy_(before)  # running means that have seen a value which is not finite never recover
    timing.enter("handling", number)
    return losses, skipped


def seed_step(device: torch.device, seed: int, component: int, step: int) -> None:
    """Start a component's random numbers for one step on the device's default generator.

    Seeding anew at each step costs microseconds and leaves nothing to carry along: step k draws the same numbers
    whatever ran before it in this process.
    """
    value = derive_seed(seed, "component", component, "step", step)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(value)
    torch.default_generator.manual_seed(value)  # a block may draw on the CPU wherever it lives


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context for a forward pass and its losses: `fp32`, or `bf16` where torch's autocast finds it safe.

    The backward pass follows by itself; parameters stay float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
