"""Heads and projectors: modules that classify the output of a block, or map it to a vector."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from alrpc.config.objectives import Head
from alrpc.errors import UserError
from alrpc.models.pooling import MeanOverPositions, Pooled, choose_pool
from alrpc.objectives.base import Place, gives
from alrpc.objectives.build import run_sample

WIDTH = 64  # least number of channels of a convolutional head, unless it is given
SMALL = 4  # height and width at which convolutional heads stop halving


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of vectors, (N, C), or images, (N, C, H, W), that takes its running mean and variance for a micro-batch
    of a single value a channel, which has no variance."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the sizes are found by a sample

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def head_of(place: Place, chosen: Head, classes: int) -> nn.Module:
    """The user's own head, or one as chosen, for a block: (N, ...) -> scores, (N, classes).

    Raises:
        UserError: naming the component whose output does not fit the kind of head.
    """
    head = place.own.get("head")
    if head is None:
        head = make_head(place, chosen, classes)
    name = gives(place.block)[0]
    scores = run_sample(head, place.leaving, f"the head of component {place.number}", (name,))
    wanted = (len(place.leaving[name]), classes)
    if tuple(scores.shape) != wanted:
        raise UserError(
            f"the head of component {place.number} gives {tuple(scores.shape)}; it must give {wanted}, a score for each class"
        )
    return head


def make_head(place: Place, chosen: Head, classes: int) -> nn.Module:
    shape = place.leaving[gives(place.block)[0]].shape
    images = len(shape) == 4
    kind = {"auto": "conv" if images else "linear"}.get(chosen.head, chosen.head)
    if kind == "augmented":
        return augmented_head(place, chosen.layers, classes)
    if kind == "conv":
        if not images:
            raise UserError(
                f"objective.head: conv classifies images, but block {place.number} gives {tuple(shape)}; use linear, mlp or auto"
            )
        return convolutional_head(shape, chosen.width or max(shape[1], WIDTH), chosen.layers, classes)
    pool, pooled = make_pool(place, chosen.pooling)
    if kind == "linear":
        return Pooled(pool, nn.Linear(pooled, classes))
    sizes = [pooled, *[chosen.width or pooled] * chosen.layers]
    hidden = [module for before, after in pairwise(sizes) for module in (nn.Linear(before, after), nn.ReLU())]
    return Pooled(pool, *hidden, nn.Linear(sizes[-1], classes))


def convolutional_head(shape: torch.Size, width: int, layers: int, classes: int) -> nn.Module:
    """3 × 3 convolutions, each of which halves an image that is larger than 4 × 4; then the mean over the pixels, and a linear layer.

    Args:
        shape: of the block's output, (N, C, H, W).
    """
    modules: list[nn.Module] = []
    before, size = shape[1], min(shape[2:])
    for _ in range(layers):
        stride = 2 if size > SMALL else 1
        modules += [nn.Conv2d(before, width, 3, stride, padding=1, bias=False), BatchNorm(width), nn.ReLU()]
        before, size = width, -(-size // stride)
    return nn.Sequential(*modules, MeanOverPositions(), nn.Linear(before, classes))


def augmented_head(place: Place, layers: int, classes: int) -> nn.Module:
    """Copies of the next blocks, with new parameters, then the mean over pixels or tokens and a linear layer (Ma et al., AugLocal,
    ICLR 2024); in the last component the linear layer alone.

    Args:
        layers: the number of later blocks that are copied, where there are as many.

    Raises:
        UserError: when a block makes more than a tensor of a tensor, or has parameters that cannot be drawn anew.
    """
    later = [copy.deepcopy(block) for block in place.blocks[place.number : place.number + layers]]
    for number, block in enumerate(later, place.number + 1):
        draw_anew(block, f"block {number}")
    name = gives(place.block)[0]
    if (name, gives(place.block)) != ("x", ("x",)) or any(
        hasattr(block, "takes") or hasattr(block, "gives") for block in later
    ):
        raise UserError(
            f"objective.head: augmented copies blocks that take and give one tensor; block {place.number} or later do more"
        )
    output = run_sample(nn.Sequential(*later), place.leaving, f"the head of component {place.number}")
    pool = choose_pool({**place.leaving, "x": output}, "x", "mean" if output.ndim > 2 else "flatten")
    return nn.Sequential(*later, pool, nn.Linear(output.shape[1] if output.ndim > 2 else output.shape[-1], classes))


def draw_anew(block: nn.Module, who: str) -> None:
    """Draw the parameters of a block anew.

    Raises:
        UserError: for a module with parameters of its own that cannot be drawn anew, since it has no `reset_parameters`.
    """
    for module in block.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise UserError(
                f"objective.head: augmented draws parameters anew, but {type(module).__name__} of {who} has no reset_parameters"
            )


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
