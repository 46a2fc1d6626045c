"""Heads: modules that classify the output of a block."""

from __future__ import annotations

from torch import Tensor, nn

from alrpc.errors import UserError
from alrpc.models.pooling import MeanOverPositions, Pooled, choose_pool
from alrpc.objectives.base import Place, gives
from alrpc.objectives.build import run_sample


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes its running mean and variance for a micro-batch of a single value a channel, which has no variance."""

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
    pool = place.own.get("pool")
    if pool is None:
        pool = choose_pool(place.leaving, name, "mean" if pooling == "auto" and len(shape) > 2 else pooling)
    pooled = run_sample(pool, place.leaving, f"the pool of component {place.number}", (name,)).shape[-1]
    if kind == "linear":
        return Pooled(pool, nn.Linear(pooled, classes))
    hidden = width or pooled
    return Pooled(pool, nn.Linear(pooled, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def check_scores(place: Place, head: nn.Module, classes: int) -> None:
    """Refuse, with a UserError, a head whose output for the sample is not (N, classes)."""
    name = gives(place.block)[0]
    scores = run_sample(head, place.leaving, f"the head of component {place.number}", (name,))
    wanted = (len(place.leaving[name]), classes)
    if tuple(scores.shape) != wanted:
        raise UserError(
            f"the head of component {place.number} gives {tuple(scores.shape)}; it must give {wanted}, a score for each class"
        )
