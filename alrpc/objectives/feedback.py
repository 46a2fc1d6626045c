"""Objectives with feedback: a component learns from what the next one sends back, a fixed number of micro-batches later.

    step k            component l ──► s_l ──► component l + 1       l keeps what it will need of micro-batch k
                           ▲                        │
    step k + delay         └──────── message ◄──────┘ of step k     l learns from what it kept, and what it hears

Whatever component l + 1 sends at its step k, component l hears at its step k + delay, however fast the two are: parameters stay a
function of the step alone, and pipelined training equal to sequential training. `alrpc.training.feedback` carries the messages.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from alrpc.objectives.base import Component, Microbatch, Objective, Tensors

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
    def absorb(self, component: Component, kept: Tensors, heard: Tensors) -> Tensor:
        """The loss of what was kept of a micro-batch and is heard of it: a scalar with graph, as `learn` has it among its losses.

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
