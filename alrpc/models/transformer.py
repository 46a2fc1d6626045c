"""Transformer encoder: an embedding with positions, then pre-norm encoder layers (Vaswani et al., 2017)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from alrpc.errors import UsageError
from alrpc.models import checked
from alrpc.models.attention import SelfAttention
from alrpc.models.dropout import Dropout
from alrpc.models.pooling import MeanOverTokens


class Embedding(nn.Module):
    """Words (N, T) -> (N, T, width): word vectors plus sines and cosines of the positions (section 3.5)."""

    def __init__(self, vocabulary: int, width: int, dropout: float):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.dropout = Dropout(dropout)
        self.register_buffer("rates", torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width)), persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        angles = torch.arange(words.shape[1], device=words.device).unsqueeze(1) * self.rates
        positions = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        return self.dropout(self.words(words) + positions[:, : self.words.embedding_dim])


class EncoderLayer(nn.Module):
    """x (N, T, width), mask (N, T) -> x; attention ignores padded words.

    The layer begins with a norm, γ x̂ + β, and a projection, W (γ x̂ + β) + b. A component of associated learning needs no
    gradient of its input, but γ and β need the gradient of the projection's input. There the two are folded into one projection
    of x̂, (W γ) x̂ + (W β + b): the same function with the same gradients, but its backward pass saves a product of
    width × 3 width for each word.
    """

    takes = ("x", "mask")

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, heads, feed_forward, dropout, batch_first=True, norm_first=True)
        self.layer.self_attn = SelfAttention(width, heads, dropout)
        for name in ("dropout", "dropout1", "dropout2"):
            setattr(self.layer, name, Dropout(dropout))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if x.requires_grad or not torch.is_grad_enabled():
            return self.layer(x, src_key_padding_mask=~mask)
        return functional_call(self.layer, self.fold(), (x,), {"src_key_padding_mask": ~mask})

    def fold(self) -> dict[str, Tensor]:
        """The folded parameters, which replace those of the first norm and of the projection after it."""
        norm, attention = self.layer.norm1, self.layer.self_attn
        return {
            "norm1.weight": torch.ones_like(norm.weight),
            "norm1.bias": torch.zeros_like(norm.bias),
            "self_attn.in_proj_weight": attention.in_proj_weight * norm.weight,
            "self_attn.in_proj_bias": attention.in_proj_bias + attention.in_proj_weight @ norm.bias,
        }


class Head(nn.Module):
    """x (N, T, width), mask (N, T) -> (N, classes): layer norm, mean over the words, linear layer."""

    takes = ("x", "mask")

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pool = MeanOverTokens("x")
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(self.pool(self.norm(x), mask))


@checked
def build(
    vocabulary: Annotated[int, Field(ge=3)] = 30_000,
    width: Annotated[int, Field(ge=1)] = 300,
    layers: Annotated[int, Field(ge=1, le=10_000)] = 3,
    heads: Annotated[int, Field(ge=1)] = 6,
    feed_forward: Annotated[int, Field(ge=1)] = 256,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3,
) -> dict:
    """Build the blocks: the embedding is the first component, and each encoder layer is one more.

    Args:
        vocabulary: number of words, including padding (0); that of the data if not given.
        width: width of the word embeddings and of every layer; a multiple of heads.
        layers: number of encoder layers.
        heads: number of attention heads in each layer.
        feed_forward: hidden width of the feed-forward network in each layer.
        dropout: probability that an activation is dropped.
    """
    if width % heads:
        raise UsageError(f"model.width: got {width}; it must be a multiple of model.heads, {heads}")
    blocks = [Embedding(vocabulary, width, dropout)]
    blocks += [EncoderLayer(width, heads, feed_forward, dropout) for _ in range(layers)]
    return {"blocks": blocks, "head": lambda classes: Head(width, classes)}
