"""The floating-point operations of a network's components and exits, by torch's counter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alrpc.errors import UserError
from alrpc.network import Network
from alrpc.objectives.base import Tensors

T = TypeVar("T")


@torch.no_grad()
def count_flops(network: Network, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Count the operations of matrix products and convolutions for a sample, a multiplication and an addition being two.

    Args:
        tensors: what enters the network, (N, ...) each; the counts are means over the N samples.

    Returns:
        (L,) those of each component, and (L,) those of an answer of its exit beside. If the objective combines exits, later answers need
        the component's exit too, so that it counts with the component, and the answer has the operations of decoding alone.

    Raises:
        UserError: when the full path has none of these operations, so that no share of them can be told.
    """
    samples, objective = len(next(iter(tensors.values()))), network.objective
    blocks, exits, outputs, parts = [], [], [], []
    with _countable():
        for component in network.components:
            parts.append(component.exit_parts())
            leaving, of_block = _counted(component.activate, tensors)
            output, of_exit = _counted(component.read_exit, leaving)
            outputs.append(output)
            _, of_answer = _counted(objective.decode, parts, outputs)
            tensors = component.hand_over(leaving)
            blocks.append(of_block + (of_exit if objective.combines_exits else 0))
            exits.append(of_answer + (0 if objective.combines_exits else of_exit))
    if not sum(blocks) + exits[-1]:
        raise UserError("the network has no matrix products or convolutions, so what its exits save cannot be counted")
    return np.array(blocks) / samples, np.array(exits) / samples


def _counted(call: Callable[..., T], *arguments: Any) -> tuple[T, int]:
    with FlopCounterMode(display=False) as counter:
        result = call(*arguments)
    return result, counter.get_total_flops()


@contextmanager
def _countable() -> Iterator[None]:
    """Use operations that the counter knows in place of fused ones: recurrent layers, attention, and whole encoder layers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about a GPU of Intel's that is not there
            with (
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
                sdpa_kernel(SDPBackend.MATH),
            ):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
