"""What arithmetic is done in: float32, or bfloat16 where torch's autocast finds it safe. Parameters stay float32."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def computing(device: torch.device, precision: str) -> AbstractContextManager:
    """The context for a forward pass and its losses: `fp32` or `bf16` (torch.autocast); the backward pass follows it by itself."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
