"""LARS: stochastic gradient descent with momentum whose rate is adapted to each tensor of parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TRUST = 0.001  # the paper's trust coefficient


class LARS(torch.optim.Optimizer):
    """You, Gitman & Ginsburg, Large Batch Training of Convolutional Networks, 2017, algorithm 1.

    A tensor w with gradient g moves by the momentum of λ (g + β w), at the rate lr, with λ = 0.001 ‖w‖ / (‖g‖ + β ‖w‖). Vectors,
    which are biases and the parameters of norms, and tensors whose w or g is zero have λ = 1, and vectors no β.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change = parameter.grad
                if parameter.ndim > 1:
                    decay = group["weight_decay"]
                    length, slope = parameter.norm(), change.norm()
                    rate = TRUST * length / (slope + decay * length)
                    change = change.add(parameter, alpha=decay) * torch.where((length > 0) & (slope > 0), rate, 1.0)
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["momentum_buffer"].mul_(group["momentum"]).add_(change, alpha=group["lr"])
                parameter.sub_(state["momentum_buffer"])
