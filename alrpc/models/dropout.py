"""Dropout that does not wait for random numbers on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """`nn.Dropout`, but that on a CPU it draws 16 bits for an element instead of two numbers of 32.

    torch's generator makes them one after the other there, and they took a seventh of an encoder layer's update. The
    probability is p rounded to a multiple of 2^-16, and what is kept is scaled by exactly that.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * LEVELS)
        if not self.training or not 0 < dropped < LEVELS or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        # Four elements to a number of 64 bits; as 16 bits with a sign they are spread evenly over -LEVELS / 2 … LEVELS / 2 - 1.
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        draws = draws.view(torch.int16)[: x.numel()].view(x.shape)
        kept = torch.ge(draws, dropped - LEVELS // 2, out=torch.empty_like(x))  # 0 or 1, in no pass of its own
        return x * kept.mul_(LEVELS / (LEVELS - dropped))
