"""The only code that trains: one component, one micro-batch. Both engines call it in a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alrpc.component import Component, Step, Tensors
from alrpc.random_stream import begin_stream
from alrpc.training.schedule import learning_rate


@dataclass(frozen=True)
class Recipe:
    """How every component of a run learns; the fields are documented in `alrpc.config.Train`."""

    optimizer: str
    lr: float
    target_lr: float
    end_lr_ratio: float
    schedule: str
    weight_decay: float
    momentum: float
    clip_norm: float | None
    accumulate: int
    seed: int
    epochs: int
    micro_batches: int
    """Micro-batches in an epoch."""

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.micro_batches // self.accumulate)


@dataclass(frozen=True)
class Learner:
    """A component that trains: its number l, its optimizer, its recipe and the device that it lives on."""

    number: int
    component: Component
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    device: torch.device


OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def make_learner(number: int, component: Component, recipe: Recipe, device: torch.device) -> Learner:
    """Move a component to its device and give it an optimizer with one rate for f and b, another for g and h."""
    component.to(device).train()
    groups = [
        {"params": component.forward_parameters(), "start_lr": recipe.lr},
        {"params": component.target_parameters(), "start_lr": recipe.target_lr},
    ]
    options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "sgd":
        options["momentum"] = recipe.momentum
    optimizer = OPTIMIZERS[recipe.optimizer](groups, **options)
    return Learner(number, component, optimizer, recipe, device)


def update(
    learner: Learner, tensors: Tensors, target: Tensor, step: int, hand_on: Callable[[Step], None]
) -> tuple[Tensor, Tensor]:
    """Train one component on one micro-batch: forward, hand on, backward, optimizer step.

    `hand_on` is called once the forward pass is done and before the backward pass begins, so that the next component
    can start while this one still learns.

    With accumulation over k micro-batches the gradients of k are averaged before one optimizer step; a group never
    crosses the end of an epoch, so the last of an epoch may be smaller.

    Args:
        tensors: s_{l-1} and whatever else travels with it.
        target: t_{l-1}, (N, width).
        step: the micro-batch's number in the run, from 0.

    Returns:
        The associated loss and the autoencoder loss, scalars without graph.
    """
    recipe = learner.recipe
    begin_stream(learner.device, recipe.seed, learner.number, step)
    result = learner.component(tensors, target)
    hand_on(result)

    epoch, position = divmod(step, recipe.micro_batches)
    group, place = divmod(position, recipe.accumulate)
    group_size = min(recipe.accumulate, recipe.micro_batches - group * recipe.accumulate)
    losses = [loss for loss in (result.associated_loss, result.autoencoder_loss) if loss.requires_grad]
    torch.autograd.backward([loss / group_size for loss in losses] if group_size > 1 else losses)
    if place == group_size - 1:
        _optimizer_step(learner, epoch * recipe.updates_per_epoch + group)
    return result.associated_loss.detach(), result.autoencoder_loss.detach()


def _optimizer_step(learner: Learner, number: int) -> None:
    recipe, optimizer = learner.recipe, learner.optimizer
    for group in optimizer.param_groups:
        if recipe.clip_norm is not None:  # each of the two losses has a gradient of its own
            nn.utils.clip_grad_norm_(group["params"], recipe.clip_norm)
        start = group["start_lr"]
        group["lr"] = learning_rate(
            recipe.schedule, start, start * recipe.end_lr_ratio, number, recipe.epochs * recipe.updates_per_epoch
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
