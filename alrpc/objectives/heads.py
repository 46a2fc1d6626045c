"""Heads and projectors: modules that classify the output of a block, or map it to a vector."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from alrpc.errors import UserError
from alrpc.models.pooling import MeanOverPositions, Pooled, choose_pool
from alrpc.objectives.base import Place, gives
from alrpc.objectives.build import run_sample


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of vectors, (N, C), or images, (N, C, H, W), that takes its running mean and variance for a micro-batch
    of a single value a channel, which has no variance."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the sizes are found by a sample

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def make_head(place: Place, kind: str, width: int | None, pooling: str, classes: int) -> nn.Module:
    """A head for a block: (N, ...) -> scores, (N, classes).

    Args:
        kind: auto, linear, mlp or conv.
        width: hidden width, or channels of the convolution; None for as many as the block gives.
        pooling: how a linear or mlp head makes one vector of the block's output, as `choose_pool`.

    Raises:
        UserError: naming the component whose output does not fit the kind of head.
    """
    name = gives(place.block)[0]
    shape = place.leaving[name].shape
    images = len(shape) == 4
    kind = {"auto": "conv" if images else "linear"}.get(kind, kind)
    if kind == "conv":
        if not images:
            raise UserError(
                f"objective.head: conv classifies images, but block {place.number} gives {tuple(shape)}; use linear, mlp or auto"
            )
        channels = width or shape[1]
        stride = 2 if min(shape[2:]) >= 8 else 1
        return nn.Sequential(
            nn.Conv2d(shape[1], channels, 3, stride, padding=1, bias=False),
            BatchNorm(channels),
            nn.ReLU(),
            MeanOverPositions(),
            nn.Linear(channels, classes),
        )
    pool, pooled = make_pool(place, pooling)
    if kind == "linear":
        return Pooled(pool, nn.Linear(pooled, classes))
    hidden = width or pooled
    return Pooled(pool, nn.Linear(pooled, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def make_pool(place: Place, pooling: str) -> tuple[nn.Module, int]:
    """The user's own pool, or the one that `pooling` says, and the width of the vector that it makes of a block's output.

    Args:
        pooling: as `choose_pool`, but auto averages over pixels.
    """
    name = gives(place.block)[0]
    pool = place.own.get("pool")
    if pool is None:
        averages = pooling == "auto" and place.leaving[name].ndim > 2
        pool = choose_pool(place.leaving, name, "mean" if averages else pooling)
    return pool, run_sample(pool, place.leaving, f"the pool of component {place.number}", (name,)).shape[-1]


def make_projector(place: Place, widths: Sequence[int], pooling: str, norm: bool = False) -> tuple[nn.Module, int]:
    """A projector of a block's output: a pool, and linear layers with ReLU between them; and the width of its vectors.

    The pool is a copy, since a head may have the same.

    Args:
        widths: of the linear layers; none for the pooled vector itself.
        norm: whether batch norm comes before each ReLU.
    """
    pool, pooled = make_pool(place, pooling)
    layers: list[nn.Module] = []
    for before, after in pairwise((pooled, *widths)):
        if layers:
            layers += [BatchNorm(before), nn.ReLU()] if norm else [nn.ReLU()]
        layers.append(nn.Linear(before, after))
    return Pooled(copy.deepcopy(pool), *layers), widths[-1] if widths else pooled


def head_of(place: Place, kind: str, width: int | None, pooling: str, classes: int) -> nn.Module:
    """The user's own head, or one that `make_head` makes, whose scores are checked.

    Raises:
        UserError: naming the component whose head does not fit.
    """
    head = place.own.get("head")
    if head is None:
        head = make_head(place, kind, width, pooling, classes)
    check_scores(place, head, classes)
    return head


def check_scores(place: Place, head: nn.Module, classes: int) -> None:
    """Refuse, with a UserError, a head whose output for the sample is not (N, classes)."""
    name = gives(place.block)[0]
    scores = run_sample(head, place.leaving, f"the head of component {place.number}", (name,))
    wanted = (len(place.leaving[name]), classes)
    if tuple(scores.shape) != wanted:
        raise UserError(
            f"the head of component {place.number} gives {tuple(scores.shape)}; it must give {wanted}, a score for each class"
        )
