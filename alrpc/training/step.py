"""Training of one component on one micro-batch. Both engines use this code through a stage; nothing else trains."""

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
    """A component in training: its optimizer, its recipe, its device, and the clock to which its time is charged."""

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
    """The result of a component's forward pass."""

    batch: Microbatch
    """The micro-batch that leaves the component, without graph."""
    losses: tuple[Tensor, ...]
    """The losses, scalars with graph, in the objective's order."""
    buffers: list[tuple[Tensor, Tensor]]
    """Each buffer of the component with its previous value, if an update may be skipped; else empty."""


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
    """Run a component's forward pass and compute its local losses, with the component's own random numbers.

    Args:
        batch: the micro-batch that enters the component, on its device.
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

    timing.enter("update", number)
    skipped = group.last and not optimizer_step(trainer.optimizer, recipe, group.update, recipe.train.clip_norm)
    losses = tuple(loss.detach() for loss in output.losses)
    if recipe.train.nonfinite == "skip" and (skipped or not sum(losses).isfinite()):
        with torch.no_grad():
            for buffer, before in output.buffers:
                buffer.copy_(before)  # a running mean never recovers from a value that is not finite
    timing.enter("handling", number)
    return losses, skipped


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
