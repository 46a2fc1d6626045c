"""The precision in which activations are handed from one component to the next: as they are, as bf16, or as int8 a row.

It belongs to the network, not to the link: it is the same between two components of one process, so that any split gives the same
bits, and in a prediction. No gradient passes, so rounding biases none: the next component learns from slightly noisy inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alrpc.errors import UsageError

SCALE = "-scale"  # ends the name of the scales that travel with an int8 tensor
LARGEST = 127  # of an int8, on both sides of 0


def pack(tensors: dict[str, Tensor], handover: str) -> dict[str, Tensor]:
    """The tensors that leave a component, (N, ...) each, as they travel; those that are no floats stay as they are.

    int8 rounds each row to multiples of its largest magnitude / 127. A row is a sample's vector, a token's, or an image's channel;
    a single number for each sample, (N,), has no row, and stays as it is.

    Args:
        handover: fp32, bf16 or int8.
    """
    if handover == "fp32":
        return tensors
    if handover == "bf16":
        return {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    packed = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.dim() < 2:
            packed[name] = tensor
            continue
        values = tensor.float()
        scale = values.abs().amax(dim=_row(values), keepdim=True) / LARGEST if values.numel() else values
        packed[name] = (values / scale.where(scale > 0, 1)).round().to(torch.int8)
        packed[name + SCALE] = scale
    return packed


def unpack(tensors: dict[str, Tensor], handover: str) -> dict[str, Tensor]:
    """The tensors that enter a component, of those that `pack` gave: float32 where they were packed."""
    if handover == "fp32":
        return tensors
    floats = {name: tensor.float() if tensor.dtype is torch.bfloat16 else tensor for name, tensor in tensors.items()}
    return {
        name: tensor.float() * floats[name + SCALE] if name + SCALE in floats else tensor
        for name, tensor in floats.items()
        if name.removesuffix(SCALE) == name or name.removesuffix(SCALE) not in floats
    }


def check_handover(handover: str, delay: int) -> None:
    """Refuse, with a UsageError, a precision for an objective with feedback, which is about the activations as they were computed."""
    if handover != "fp32" and delay:
        raise UsageError(f"model.handover: got {handover}, but the objective sends gradients or targets back; use fp32")


def _row(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions of a row: the last one, or all behind an image's channels."""
    return tuple(range(2, tensor.dim())) if tensor.dim() > 3 else (-1,)
