"""What back-propagation minimises: cross entropy for classes, squared error for values, averaged over the samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from alrpc.objectives.base import Classes, Target

IGNORED = -100  # the class index of a sample that only fills a micro-batch up; for values it is nan


def loss(target: Target, output: Tensor, labels: Tensor, samples: int) -> Tensor:
    """The loss of (N, width) outputs summed over those samples that count, divided by `samples`."""
    output = output.float()
    if isinstance(target, Classes):
        return functional.cross_entropy(output, labels, reduction="sum", ignore_index=IGNORED) / samples
    wanted = target.represent(labels)
    counting = wanted.isfinite().all(dim=-1, keepdim=True)
    return torch.where(counting, output - wanted.nan_to_num(), 0).square().mean(dim=-1).sum() / samples


def fill_up(tensor: Tensor, count: int) -> Tensor:
    """The tensor with its last sample repeated until there are `count`."""
    missing = count - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor


def fill_up_labels(target: Target, labels: Tensor, count: int) -> Tensor:
    """The labels with samples that do not count added until there are `count`."""
    labels = labels.long() if isinstance(target, Classes) else target.represent(labels)
    extra = IGNORED if isinstance(target, Classes) else torch.nan
    return torch.cat([labels, labels.new_full((count - len(labels), *labels.shape[1:]), extra)])
