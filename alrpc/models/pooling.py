"""Pooling of a block's output to one vector: for bridges, heads, and measures of quality."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from alrpc.config.own_code import check_choice

GRID = 4  # height and width to which the default pool of an image reduces it
POOLINGS = ("auto", "flatten", "mean", "grid")


class MeanOverTokens(nn.Module):
    """(N, T, C) -> (N, C): the mean over the tokens where the mask, (N, T), is true."""

    def __init__(self, name: str):
        super().__init__()
        self.takes = (name, "mask")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(x.dtype).unsqueeze(-1)
        return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class MeanOverPositions(nn.Module):
    """(N, T, C) -> (N, C) over tokens, (N, C, ...) -> (N, C) over pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1) if x.ndim == 3 else x.flatten(2).mean(dim=2)


class GridMean(nn.Module):
    """(N, C, H, W) -> (N, C, GRID, GRID): the mean over each cell of a grid, `nn.AdaptiveAvgPool2d(GRID)`.

    While it trains, and cells have one size, it has a gradient of its own, with torch's values to the bit in fp32 and bf16:
    torch's adds them pixel by pixel, which is slow on a CPU, and on a GPU has no fixed order.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not (x.shape[2] % GRID or x.shape[3] % GRID):
            return _EvenGridMean.apply(x)
        return nn.functional.adaptive_avg_pool2d(x, GRID)


class _EvenGridMean(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.shape = x.shape
        context.layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        return nn.functional.adaptive_avg_pool2d(x, GRID)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        n, c, height, width = context.shape
        new = {"dtype": gradient.dtype, "device": gradient.device, "memory_format": context.layout}
        rows, pixels = torch.empty((n, c, GRID, width), **new), torch.empty(context.shape, **new)
        rows.unflatten(3, (GRID, -1)).copy_((gradient / (height // GRID * (width // GRID)))[..., None])
        pixels.unflatten(2, (GRID, -1)).copy_(rows[:, :, :, None])
        return pixels


class Pooled(nn.Sequential):
    """A pool and the layers after it; it takes the same tensors as its pool."""

    def __init__(self, pool: nn.Module, *layers: nn.Module):
        super().__init__(pool, *layers)
        if hasattr(pool, "takes"):
            self.takes = pool.takes

    def forward(self, *inputs: Tensor) -> Tensor:
        pool, *layers = self
        x = pool(*inputs)
        for layer in layers:
            x = layer(x)
        return x


def choose_pool(tensors: dict[str, Tensor], name: str, pooling: str) -> nn.Module:
    """The module that reduces one of the tensors that leave a block, named `name`, to one vector for each sample, (N, C).

    Raises:
        UsageError: for a `pooling` that is none of POOLINGS.
    """
    check_choice("pooling", pooling, POOLINGS)
    shape = tensors[name].shape
    if pooling == "auto":
        pooling = {2: "flatten", 3: "mean", 4: "grid"}.get(len(shape), "flatten")
    if pooling == "mean" and len(shape) == 3 and "mask" in tensors:
        return MeanOverTokens(name)
    if pooling == "mean" and len(shape) > 2:
        return MeanOverPositions()
    if pooling == "grid" and len(shape) == 4 and math.prod(shape[2:]) > GRID * GRID:
        return nn.Sequential(GridMean(), nn.Flatten())
    return nn.Flatten()
