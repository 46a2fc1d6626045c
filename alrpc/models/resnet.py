"""ResNet-18 for small images: a stem, and one block for each stage of the network (He et al., 2016; no pool after the stem)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from alrpc.models import checked


@checked
def build(
    width: Annotated[int, Field(ge=1)] = 64,
    depths: Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1, max_length=20)] = (2, 2, 2, 2),
    join_stem: bool = False,
) -> dict:
    """Build a 3 × 3 stem, then one block of residual blocks for each depth; the second and later ones halve the image.

    Args:
        width: channels of the stem and of the first block; each later block has twice as many.
        depths: number of residual blocks in each block; there is one more component than there are depths.
        join_stem: make the stem part of the first block, so that there are as many components as depths.
    """
    from torchvision.models.resnet import BasicBlock

    blocks = [nn.Sequential(nn.LazyConv2d(width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())]
    before = width
    for index, depth in enumerate(depths):
        after, stride = width * 2**index, 1 if index == 0 else 2
        shortcut = None
        if stride != 1 or before != after:
            shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        first = BasicBlock(before, after, stride, shortcut)
        block = nn.Sequential(first, *(BasicBlock(after, after) for _ in range(depth - 1)))
        block.residual_branches = [f"{place}.bn2" for place in range(depth)]  # what is added to what runs past them
        blocks.append(block)
        before = after

    if join_stem:
        stem, first, *others = blocks
        blocks = [nn.Sequential(stem, *first), *others]
        blocks[0].residual_branches = [f"{place}.bn2" for place in range(1, depths[0] + 1)]

    def head(width: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(width))

    return {"blocks": blocks, "head": head}
