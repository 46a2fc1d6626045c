"""How components learn: the recipe of a run, its optimizers, its learning-rate schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from alrpc.config import Config, Train
from alrpc.config.own_code import call_own, import_function
from alrpc.errors import UsageError, UserError
from alrpc.training.lars import LARS

END_LR_RATIO = 0.01  # the last learning rate as a share of the first, if the configuration gives no end_lr


@dataclass(frozen=True)
class Recipe:
    """How every component of a run learns: the settings of the configuration, and the number of micro-batches in an epoch."""

    train: Train
    micro_batches: int
    """Number of micro-batches in an epoch."""
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.micro_batches // self.train.accumulate)

    @property
    def updates(self) -> int:
        """Number of optimizer steps in the run."""
        return self.train.epochs * self.updates_per_epoch

    @property
    def warmup(self) -> int:
        """Number of optimizer steps in which the learning rates rise."""
        return round(self.train.warmup * self.updates_per_epoch)

    @property
    def end_lr_ratio(self) -> float:
        """Each learning rate at the last step as a share of its value at the first."""
        return self.train.end_lr / self.train.lr if self.train.end_lr else END_LR_RATIO


def make_recipe(config: Config, micro_batches: int) -> Recipe:
    """The recipe of a configured run with `micro_batches` in an epoch."""
    return Recipe(config.train, micro_batches, config.precision, config.compile, config.channels_last)


def make_optimizer(groups: Mapping[str, list[nn.Parameter]], recipe: Recipe) -> torch.optim.Optimizer:
    """Make the configured optimizer, or the user's own.

    Args:
        groups: parameters by their learning rate: `lr`, `target_lr`, or one of `group_lr`.

    Raises:
        UserError: when there are no parameters.
        UsageError: for a group without a learning rate; when the user's own function raises, or gives no optimizer.
    """
    train = recipe.train
    if not groups:
        raise UserError(
            "a component has nothing to train: its block has no parameters or is frozen, and its objective adds none"
        )
    rates = {**train.group_lr, "lr": train.lr, "target_lr": train.target_lr or train.lr}
    for name in groups.keys() - rates.keys():
        raise UsageError(f"train.group_lr: has no {name}, a group of parameters of the objective; add its learning rate")
    parameters = [{"params": of_group, "initial_lr": rates[rate]} for rate, of_group in groups.items()]
    shared = {"lr": train.lr, "weight_decay": train.weight_decay}
    match train.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, **shared, betas=tuple(train.betas), fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, **shared, betas=tuple(train.betas), fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, **shared, momentum=train.momentum, nesterov=train.nesterov, fused=True)
        case "lars":
            return LARS(parameters, **shared, momentum=train.momentum)
    return make_own_optimizer(train.optimizer, parameters, shared)


def make_own_optimizer(name: str, parameters: list[dict], options: dict[str, float]) -> torch.optim.Optimizer:
    function = import_function(name, "train.optimizer")
    optimizer = call_own(function, name, "train.optimizer", parameters, **options)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"train.optimizer: {name} gave {type(optimizer).__name__}; it must give a torch.optim.Optimizer")
    return optimizer


def learning_rate(schedule: str, start: float, end: float, step: int, steps: int, warmup: int = 0) -> float:
    """The learning rate for optimizer step `step` of 0 … steps - 1: `start` at the first step, `end` at the last.

    Args:
        schedule: constant, linear or cosine (annealing by Loshchilov & Hutter, SGDR, 2017, equation 5, without restarts); or
            `package.module:function`, which is called with start, end, step and steps.
        warmup: the number of first steps in which the rate rises to `start` in equal steps (Goyal et al., Accurate, Large Minibatch
            SGD, 2017, section 2.2); the schedule covers the steps after them.
    """
    if step < warmup:
        return start * (step + 1) / (warmup + 1)
    step, steps = step - warmup, steps - warmup
    if ":" in schedule:
        return find_schedule(schedule)(start, end, step, steps)
    if schedule == "constant" or steps < 2:
        return start
    progress = step / (steps - 1)
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * progress


@functools.cache
def find_schedule(name: str) -> Callable[[float, float, int, int], float]:
    return import_function(name, "train.schedule")
