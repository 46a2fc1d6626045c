"""Difference target propagation: a block learns to give a target, which the next blocks' approximate inverses make of their own.

    s_{l-1} ──► f ──► s_l ──────────────────────► component l + 1
                       ▲                                 │
                       └── squared error ◄── ŝ_l ◄───────┘ delay · (L - l) micro-batches later
                                              │
              ŝ_{l-1} = s_{l-1} + g(ŝ_l) - g(s_l) ──► component l - 1

f is the block, g its approximate inverse, which learns to restore noisy inputs of f; the differences keep its error out of the
targets. The last component learns from the true loss of its head, and gives the first target, one step against the gradient:
ŝ_{L-1} = s_{L-1} - step · N ∂loss/∂s_{L-1}, N being the number of samples, over which the loss averages. A head on the features of
every other component, without gradient to them, is its exit.

A block learns when its target has come: from the input that it had, with the parameters that it has by then. The squared error is
divided by 2 · step, so that its gradient at s_{L-1} is the true one whatever the step.

Lee, Zhang, Fischer & Bengio, Difference Target Propagation, ECML 2015, equations 12 to 16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrpc import config
from alrpc.errors import UserError
from alrpc.objectives.base import LABEL, Component, Microbatch, Place, Tensors, call, gives
from alrpc.objectives.feedback import NOTHING, WithFeedback, check_output, untaught, widened
from alrpc.objectives.heads import head_of
from alrpc.objectives.targets import Target

ENTERED, LEFT = "entered.", "left"
"""Names of what a component keeps: entered.<name> for all that entered it, and s_l."""


class Inverse(nn.Module):
    """g: what a block gives, (N, ...), -> what it was given, (N, ...): two 3 × 3 convolutions between images, else two linear layers.

    Args:
        entering, leaving: shapes of a sample of the block's input and output.
    """

    def __init__(self, entering: torch.Size, leaving: torch.Size, width: int):
        super().__init__()
        if len(entering) == len(leaving) == 4:
            resize = nn.Identity() if entering[2:] == leaving[2:] else nn.Upsample(tuple(entering[2:]))
            first, last = nn.Conv2d(leaving[1], width, 3, padding=1), nn.Conv2d(width, entering[1], 3, padding=1)
            self.layers = nn.Sequential(resize, first, nn.ReLU(), last)
        elif len(entering) == len(leaving):
            self.layers = nn.Sequential(nn.Linear(leaving[-1], width), nn.ReLU(), nn.Linear(width, entering[-1]))
        else:
            numbers = (entering[1:].numel(), leaving[1:].numel())
            hidden = (nn.Flatten(), nn.Linear(numbers[1], width), nn.ReLU(), nn.Linear(width, numbers[0]))
            self.layers = nn.Sequential(*hidden, nn.Unflatten(1, tuple(entering[1:])))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TargetPropagation(WithFeedback):
    """The objective of difference target propagation; its options are the fields of `alrpc.config.objectives.TargetPropagation`.

    The loss `exit` is that of a component's exit; `target` that of its block, `inverse` that of its inverse, 0 where there is none
    and until the first target has come.

    Raises:
        UsageError: for an unknown option, or a value that is not allowed.
    """

    losses = ("exit", "target", "inverse")
    own_parts = ("head", "pool")

    def __init__(self, target: Target, **options: Any):
        super().__init__(target)
        self.options = config.parse_section("objective", {"name": "target_propagation", **options})
        self.delay = self.options.delay
        self.given: list[str] = []
        """The name of what each block gives first, s_l; known once the first component is built."""

    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        self.given = [gives(block)[0] for block in place.blocks]
        parts = {"head": head_of(place, self.options, self.target.width)}
        if place.number < len(place.blocks):
            check_output(place, "target_propagation")
            if place.number > 1:
                parts["inverse"] = self._inverse(place)
        return parts, place.beside

    def _inverse(self, place: Place) -> Inverse:
        entering = place.entering[self.given[place.number - 2]].shape
        leaving = place.leaving[self.given[place.number - 1]].shape
        if 3 in (len(entering), len(leaving)) and (len(entering) != len(leaving) or entering[1] != leaving[1]):
            raise UserError(
                f"objective.name: target_propagation inverts blocks that keep the length of a sequence, but block {place.number} "
                f"makes {tuple(leaving)} of {tuple(entering)}"
            )
        return Inverse(entering, leaving, self.options.inverse_width)

    def lag(self, component: Component) -> int:
        return self.delay * (len(self.given) - component.number)

    def keep(self, component: Component, entered: Tensors, left: Microbatch) -> Tensors:
        given = left.tensors[self.given[component.number - 1]]
        return {LEFT: given, **{f"{ENTERED}{name}": tensor for name, tensor in entered.items()}}

    def learn(
        self, component: Component, leaving: Tensors, beside: Tensors, kept: Tensors = NOTHING, heard: Tensors = NOTHING
    ) -> tuple[Tensors, tuple[Tensor, ...]]:
        is_last = not self.lag(component)
        features = leaving if is_last else {name: tensor.detach() for name, tensor in leaving.items()}
        exit = self.target.loss(self.exit(component, features).float(), beside[LABEL])
        nothing = exit.new_zeros(())
        if is_last:
            return beside, (exit, nothing, nothing)
        if not kept:
            taught = [component.block, *([component.inverse] if component.number > 1 else [])]
            return beside, (exit, untaught(nothing, *taught), nothing)
        return beside, (exit, *self.absorb(component, kept, heard))

    def absorb(self, component: Component, kept: Tensors, heard: Tensors) -> tuple[Tensor, ...]:
        name = self.given[component.number - 1]
        entered = {key.removeprefix(ENTERED): tensor for key, tensor in kept.items() if key != LEFT}
        output, target = self._run(component, entered), heard[name]
        if not output.shape == kept[LEFT].shape == target.shape:
            shapes = f"{tuple(target.shape)} for {tuple(kept[LEFT].shape)}"
            raise ValueError(f"{name}: got a target {shapes}, and the block gives {tuple(output.shape)}")
        difference = (widened(output) - widened(target)).square().sum()
        loss = difference / (2 * self.options.step * len(output))
        if component.number == 1:
            return loss, loss.new_zeros(())
        before = self.given[component.number - 2]
        noisy = entered[before] + self.options.noise * torch.randn_like(entered[before])
        with torch.no_grad():
            output = self._run(component, {**entered, before: noisy})
        return loss, functional.mse_loss(widened(component.inverse(output)), widened(noisy))

    def _run(self, component: Component, entered: Tensors) -> Tensor:
        """What the component's block gives first; it is given copies, since it may work in place."""
        return component.activate({name: tensor.clone() for name, tensor in entered.items()})[self.given[component.number - 1]]

    def reply(
        self, component: Component, entered: Tensors, gradients: Tensors, kept: Tensors, heard: Tensors
    ) -> Tensors | None:
        before = self.given[component.number - 2]
        if not self.lag(component):
            own = widened(entered[before])
            return {before: own - self.options.step * len(own) * gradients.get(before, torch.zeros_like(own))}
        if not kept:
            return None
        target, output = widened(heard[self.given[component.number - 1]]), widened(kept[LEFT])
        return {before: widened(kept[f"{ENTERED}{before}"]) + component.inverse(target) - component.inverse(output)}

    def parameter_groups(self, component: Component) -> dict[str, list[nn.Parameter]]:
        block, head = list(component.block.parameters()), list(component.head.parameters())
        if not self.lag(component):
            return {"lr": [*block, *head]}
        inverse = component.inverse.parameters() if component.number > 1 else ()
        return {"lr": block, "target_lr": [*head, *inverse]}

    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        return call(component.head, leaving, takes=gives(component.block)[:1])
