"""ResNet-18 for small images: a stem, and residual blocks in stages of equal width (He et al., 2016)."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Annotated

from pydantic import Field
from torch import nn

from alrpc.errors import UsageError
from alrpc.models import checked


@checked
def build(
    width: Annotated[int, Field(ge=1)] = 64,
    depths: Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1, max_length=20)] = (2, 2, 2, 2),
    pool: bool = False,
    components: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None,
) -> dict:
    """Build a 3 × 3 stem, then residual blocks, as many for each depth; those of the second and later depths halve the image once.

    Args:
        width: channels of the stem and of the first depth's blocks; those of each later depth have twice as many.
        depths: number of residual blocks of each width.
        pool: halve the image after the stem by a max pool.
        components: the number of consecutive parts in each component, where the stem is a part, and each residual block; null for the
            stem, and then the blocks of each depth.
    """
    from torchvision.models.resnet import BasicBlock

    stem = [nn.LazyConv2d(width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    parts: list[nn.Module] = [nn.Sequential(*stem, *([nn.MaxPool2d(2)] if pool else []))]
    before = width
    for index, depth in enumerate(depths):
        after = width * 2**index
        for place in range(depth):
            stride = 2 if index and not place else 1
            shortcut = None
            if stride != 1 or before != after:
                shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            parts.append(BasicBlock(before, after, stride, shortcut))
            before = after
    counts = [1, *depths] if components is None else components
    if sum(counts) != len(parts):
        raise UsageError(
            f"model.components: got {counts}, {sum(counts)} parts; there are {len(parts)}, the stem and {sum(depths)} residual blocks"
        )
    blocks = [_chain(parts[first:after]) for first, after in pairwise(accumulate(counts, initial=0))]

    def head(width: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(width))

    return {"blocks": blocks, "head": head}


def _chain(parts: list[nn.Module]) -> nn.Sequential:
    """A block of consecutive parts; a stem alone stays as it is."""
    if isinstance(parts[0], nn.Sequential) and len(parts) == 1:
        return parts[0]
    block = nn.Sequential(*parts)
    residual = [place for place, part in enumerate(parts) if not isinstance(part, nn.Sequential)]
    block.residual_branches = [f"{place}.bn2" for place in residual]  # what is added to what runs past them
    return block
