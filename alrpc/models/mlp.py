"""A multi-layer perceptron: one block, hence one component, for each width."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from alrpc.models import checked
from alrpc.models.dropout import Dropout

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


@checked
def build(
    widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = (256, 256, 256, 256),
    activation: Literal["relu", "gelu", "tanh", "sigmoid"] = "relu",
    batch_norm: bool = False,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> list[nn.Module]:
    """Build blocks of Linear, batch norm, activation and dropout; the first one flattens its input.

    Args:
        widths: output width of each block; there is one component for each width.
        activation: relu, gelu, tanh or sigmoid.
        batch_norm: normalise over the micro-batch before the activation.
        dropout: probability that an activation is dropped.
    """
    blocks = []
    for index, width in enumerate(widths):
        layers = [nn.Flatten()] if index == 0 else []
        layers.append(nn.LazyLinear(width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(ACTIVATIONS[activation]())
        if dropout:
            layers.append(Dropout(dropout))
        blocks.append(nn.Sequential(*layers))
    return blocks
