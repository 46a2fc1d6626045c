"""Self-attention with the fast dropout of `alrpc.models.dropout` on a CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrpc.models.dropout import Dropout


class SelfAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` of x (N, T, width) to itself (Vaswani et al., 2017, section 3.2), as an encoder layer calls it.

    For training with dropout on a CPU, it computes products, softmax and dropout as separate operations, with `Dropout`, since
    torch's dropout within its attention took a twentieth of an encoder layer's update. Otherwise it calls torch's attention.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__(width, heads, dropout, batch_first=True)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, *others, key_padding_mask: Tensor | None = None, **options) -> tuple[Tensor, Tensor | None]:
        """Return (x (N, T, width), None). The mask, (N, T), is added to the scores; it is -inf for words to ignore."""
        if not self.training or self.drop.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x, *others, key_padding_mask=key_padding_mask, **options)
        samples, words, width = x.shape
        projected = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        split = projected.view(samples, words, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()  # each (N, heads, T, head_dim)
        scores = (query / math.sqrt(self.head_dim)) @ key.transpose(-2, -1)
        if key_padding_mask is not None:  # made finite, so that a sample without any word does not become NaN
            scores = scores + key_padding_mask.clamp(min=torch.finfo(scores.dtype).min).to(scores.dtype)[:, None, None]
        weights = self.drop(scores.softmax(-1))
        return self.out_proj((weights @ value).transpose(1, 2).reshape(samples, words, width)), None
