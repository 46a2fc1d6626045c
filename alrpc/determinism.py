"""What a GPU must be told so that the same numbers come out every time; a CPU needs nothing but equal threads."""

from __future__ import annotations

import os

import torch


def ask_for_determinism(device: torch.device) -> None:
    """Choose deterministic kernels on a GPU. An operation that has none goes on with a warning from torch."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)
