"""How components learn: the recipe of a run, its optimizers, its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from alrpc.config import Config, Train

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
END_LR_RATIO = 0.01  # the last learning rate as a share of the first, if the configuration gives no end_lr


@dataclass(frozen=True)
class Recipe:
    """How every component of a run learns: the settings of the configuration, and the number of micro-batches in an epoch."""

    train: Train
    micro_batches: int
    """Number of micro-batches in an epoch."""
    precision: str = "fp32"
    compile: bool = False

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.micro_batches // self.train.accumulate)

    @property
    def updates(self) -> int:
        """Number of optimizer steps in the run."""
        return self.train.epochs * self.updates_per_epoch

    @property
    def end_lr_ratio(self) -> float:
        """Each learning rate at the last step as a share of its value at the first."""
        return self.train.end_lr / self.train.lr if self.train.end_lr else END_LR_RATIO


def make_recipe(config: Config, micro_batches: int) -> Recipe:
    """The recipe of a configured run with `micro_batches` in an epoch."""
    return Recipe(config.train, micro_batches, config.precision, config.compile)


def make_optimizer(groups: Mapping[str, list[nn.Parameter]], recipe: Recipe) -> torch.optim.Optimizer:
    """Make the configured optimizer.

    Args:
        groups: parameters by their learning rate: `lr` or `target_lr`.
    """
    train = recipe.train
    rates = {"lr": train.lr, "target_lr": train.target_lr or train.lr}
    options = {"lr": train.lr, "weight_decay": train.weight_decay, "fused": True}
    if train.optimizer == "sgd":
        options["momentum"] = train.momentum
    parameters = [{"params": of_group, "initial_lr": rates[rate]} for rate, of_group in groups.items()]
    return OPTIMIZERS[train.optimizer](parameters, **options)


def learning_rate(schedule: str, start: float, end: float, step: int, steps: int) -> float:
    """The learning rate for optimizer step `step` of 0 … steps - 1: `start` at the first step, `end` at the last.

    Args:
        schedule: constant, linear or cosine (annealing by Loshchilov & Hutter, SGDR, 2017, equation 5, without restarts).
    """
    if schedule == "constant" or steps < 2:
        return start
    progress = step / (steps - 1)
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * progress
