"""Dropout that draws fewer random numbers on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """Like `nn.Dropout`, except that on a CPU it draws 16 random bits for an element instead of two 32-bit numbers.

    On a CPU torch generates random numbers sequentially, which took a seventh of an encoder layer's update. The probability is
    p rounded to a multiple of 2^-16, and the kept elements are scaled by exactly that probability.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * LEVELS)
        if not self.training or not 0 < dropped < LEVELS or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        # One 64-bit number serves four elements; as signed 16-bit numbers they are uniform over -LEVELS / 2 … LEVELS / 2 - 1.
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        draws = draws.view(torch.int16)[: x.numel()].view(x.shape)
        kept = torch.ge(draws, dropped - LEVELS // 2, out=torch.empty_like(x))  # 0 or 1, converted to x's type in the same pass
        return x * kept.mul_(LEVELS / (LEVELS - dropped))
