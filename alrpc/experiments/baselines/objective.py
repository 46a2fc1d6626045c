"""The loss of back-propagation: cross entropy for classes and labels, squared error for values, averaged over the samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from alrpc.objectives.targets import Classes, Target

IGNORED = -100  # class index of a padding sample; a label, or a value, of a padding sample is nan


def loss(target: Target, output: Tensor, labels: Tensor, samples: int) -> Tensor:
    """The loss of (N, width) outputs, summed over the samples that are no padding and divided by `samples`."""
    output = output.float()
    if isinstance(target, Classes):
        weights = None if target.weights is None else output.new_tensor(target.weights)
        return functional.cross_entropy(output, labels, weights, reduction="sum", ignore_index=IGNORED) / samples
    wanted = target.represent(labels)
    counting = wanted.isfinite().all(dim=-1, keepdim=True)
    return torch.where(counting, target.errors(output, wanted.nan_to_num()), 0).mean(dim=-1).sum() / samples


def fill_up(tensor: Tensor, count: int) -> Tensor:
    """Pad a tensor to `count` samples by repeating its last one."""
    missing = count - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor


def fill_up_labels(target: Target, labels: Tensor, count: int) -> Tensor:
    """Pad labels to `count` samples with labels that do not count."""
    labels = target.prepare(labels)
    extra = torch.nan if labels.is_floating_point() else IGNORED
    return torch.cat([labels, labels.new_full((count - len(labels), *labels.shape[1:]), extra)])
