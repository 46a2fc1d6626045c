"""Objectives with feedback: a component learns from what the next one sends back, a fixed number of micro-batches later.

    step k            component l ──► s_l ──► component l + 1       l keeps what it will need of micro-batch k
                           ▲                        │
    step k + delay         └──────── message ◄──────┘ of step k     l learns from what it kept, and what it hears

Whatever component l + 1 sends at its step k, component l hears at its step k + delay, however fast the two are: parameters stay a
function of the step alone, and pipelined training equal to sequential training. `alrpc.training.feedback` carries the messages.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from alrpc.errors import UserError
from alrpc.objectives.base import Component, Microbatch, Objective, Place, Tensors, gives

NOTHING: Tensors = {}


class WithFeedback(Objective):
    """An objective whose components, but for the last, hear from the next one."""

    delay: int

    @abstractmethod
    def lag(self, component: Component) -> int:
        """Of which micro-batch a component hears at step k: of k - lag. 0 for a component that hears nothing."""

    @abstractmethod
    def keep(self, component: Component, entered: Tensors, left: Microbatch) -> Tensors:
        """What a component keeps of a micro-batch until it hears of it.

        Args:
            entered: the tensors that entered the component.
            left: the micro-batch that left it.
        """

    @abstractmethod
    def learn(
        self, component: Component, leaving: Tensors, beside: Tensors, kept: Tensors = NOTHING, heard: Tensors = NOTHING
    ) -> tuple[Tensors, tuple[Tensor, ...]]:
        """As `Objective.learn`, with what was kept and what is heard of an earlier micro-batch; both are empty if there is none."""

    @abstractmethod
    def absorb(self, component: Component, kept: Tensors, heard: Tensors) -> tuple[Tensor, ...]:
        """The losses of what was kept of a micro-batch and is heard of it: scalars with graph, which `learn` has among its own.

        Raises:
            ValueError, KeyError, RuntimeError: for tensors that are not the component's, as of another network's checkpoint.
        """

    @abstractmethod
    def reply(
        self, component: Component, entered: Tensors, gradients: Tensors, kept: Tensors, heard: Tensors
    ) -> Tensors | None:
        """The message to the component before, after the backward pass and before the parameters change; None for none.

        A component before hears something at each step from its `lag` on, so this one replies at each from `lag - delay` of the
        component before on.

        Args:
            entered: the tensors that entered the component.
            gradients: of the component's losses, by those of them, of floats, that have one.
            kept, heard: as for `learn`.
        """


def check_output(place: Place, name: str) -> Tensor:
    """What a block gives first, for the sample; refuses, with a UserError, what has no gradient or is no vector.

    Args:
        name: of the objective.
    """
    output = place.leaving[gives(place.block)[0]]
    if not output.is_floating_point() or output.ndim < 2:
        kind = str(output.dtype).removeprefix("torch.")
        raise UserError(
            f"objective.name: {name} teaches blocks that give floats, but block {place.number} gives {kind} {tuple(output.shape)}"
        )
    return output


def widened(tensor: Tensor) -> Tensor:
    """A tensor of floats as float32, or as it is if it has more bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def untaught(nothing: Tensor, *modules: nn.Module) -> Tensor:
    """A loss of 0 for modules that have nothing to learn yet: its gradient is 0 at every parameter.

    An optimizer is given a gradient of each parameter at every step this way; torch's fused SGD fails if one gets its first later than
    others.

    Args:
        nothing: 0, on the modules' device.
    """
    return sum((parameter.sum() * 0 for module in modules for parameter in module.parameters()), nothing)
