"""Optimizers and the step that one takes: rates from the schedule, clipping, accumulation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from alrpc.training.schedule import learning_rate

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


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
    nonfinite: str
    seed: int
    epochs: int
    micro_batches: int
    """Micro-batches in an epoch."""
    precision: str = "fp32"
    compile: bool = False

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.micro_batches // self.accumulate)


def make_optimizer(groups: Iterable[tuple[list[nn.Parameter], float]], recipe: Recipe) -> torch.optim.Optimizer:
    """An optimizer for groups of parameters, each with its first learning rate."""
    options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "sgd":
        options["momentum"] = recipe.momentum
    groups = [{"params": parameters, "start_lr": rate} for parameters, rate in groups]
    return OPTIMIZERS[recipe.optimizer](groups, **options)


@dataclass(frozen=True)
class Turn:
    """Where a micro-batch stands among those whose gradients are averaged before one optimizer step."""

    number: int
    """Of that optimizer step in the run, from 0."""
    size: int
    """Micro-batches of the group; the last of an epoch may be smaller, since none crosses an epoch's end."""
    last: bool
    """Whether the optimizer step follows."""


def turn_of(step: int, recipe: Recipe) -> Turn:
    epoch, position = divmod(step, recipe.micro_batches)
    group, place = divmod(position, recipe.accumulate)
    size = min(recipe.accumulate, recipe.micro_batches - group * recipe.accumulate)
    return Turn(epoch * recipe.updates_per_epoch + group, size, place == size - 1)


def take_step(optimizer: torch.optim.Optimizer, recipe: Recipe, number: int) -> bool:
    """Optimizer step `number` of the run: clip each group's gradient, set the rates, step, forget the gradients.

    Returns:
        Whether it was taken: where the recipe says so, gradients that are not finite are forgotten without a step. To know
        that makes a GPU wait.
    """
    if recipe.nonfinite == "skip" and not all(is_finite(group["params"]) for group in optimizer.param_groups):
        optimizer.zero_grad(set_to_none=True)
        return False
    for group in optimizer.param_groups:
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(group["params"], recipe.clip_norm)
        start = group["start_lr"]
        group["lr"] = learning_rate(
            recipe.schedule, start, start * recipe.end_lr_ratio, number, recipe.epochs * recipe.updates_per_epoch
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return True


def is_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether all of their gradients are."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return math.isfinite(nn.utils.get_total_norm(gradients, norm_type=math.inf).item()) if gradients else True
