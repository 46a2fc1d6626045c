"""VGG: blocks of 3 × 3 convolutions with batch norm and ReLU, and of max pools (Simonyan & Zisserman, 2015)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from alrpc.models import checked

Layer = Annotated[int, Field(ge=1)] | Literal["M"]


@checked
def build(
    channels: Annotated[list[Annotated[list[Layer], Field(min_length=1)]], Field(min_length=1)] = (
        (128, 256, "M"),
        (256, 512, "M"),
        (512, "M"),
        (512, "M"),
    ),
    hidden: Annotated[int, Field(ge=1)] = 2500,
) -> dict:
    """Build one block, hence one component, for each list of channels.

    Args:
        channels: the layers of each block: the output channels of a convolution, or M for a 2 × 2 max pool.
        hidden: hidden width of the head for back-propagation.
    """
    blocks = []
    for layers in channels:
        block = []
        for layer in layers:
            if layer == "M":
                block.append(nn.MaxPool2d(2))
            else:
                block += [nn.LazyConv2d(layer, 3, padding=1, bias=False), nn.BatchNorm2d(layer), nn.ReLU()]
        blocks.append(nn.Sequential(*block))

    def head(width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(hidden), nn.Sigmoid(), nn.Linear(hidden, width))

    return {"blocks": blocks, "head": head}
