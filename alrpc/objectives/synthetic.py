"""Synthetic gradients: a block learns at once from a prediction of its gradient.

    s_{l-1} ──► f ──► s_l ────────────────────► component l + 1
                ▲      │ (no gradient)                 │
                └─ ĝ ──┴─ Ĝ ── mean squared error ◄────┘ ∂/∂s_l of what component l + 1 learns from, `delay` micro-batches later

f is the block, Ĝ the synthesiser: from s_l, and the label, it predicts the gradient at s_l of each sample's loss. f learns from the
prediction ĝ_l, and the gradient that it gives at s_{l-1} is sent back to component l - 1, whose Ĝ learns from it. The last
component learns from the true loss of its head. A head on the features of every other component, without gradient to them, is its
exit.

Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017, section 2 and A.1; Czarnecki et al.,
Understanding Synthetic Gradients and Decoupled Neural Interfaces, ICML 2017, section 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrpc import config
from alrpc.objectives.base import LABEL, Component, Microbatch, Place, Tensors, call, gives
from alrpc.objectives.feedback import NOTHING, WithFeedback, check_output, untaught, widened
from alrpc.objectives.heads import BatchNorm, head_of
from alrpc.objectives.targets import Target


class Synthesiser(nn.Module):
    """Ĝ: (N, C, ...) -> a gradient of that shape, which is 0 until it has learnt.

    Args:
        width: of the hidden layers.
        code: width of the label's representation, (N, code), which is added to the first layer's output; None without a label.
    """

    def __init__(self, shape: torch.Size, width: int, code: int | None):
        super().__init__()
        if len(shape) == 4:
            self.first = nn.Conv2d(shape[1], width, 5, padding=2, bias=False)
            middle = nn.Conv2d(width, width, 5, padding=2, bias=False)
            last = nn.Conv2d(width, shape[1], 5, padding=2)
            self.rest = nn.Sequential(BatchNorm(width), nn.ReLU(), middle, BatchNorm(width), nn.ReLU(), last)
        else:
            self.first = nn.Linear(shape[-1], width)
            last = nn.Linear(width, shape[-1])
            self.rest = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.label = None if code is None else nn.Linear(code, width, bias=False)

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        hidden = self.first(x)
        if code is not None:
            added = self.label(code)
            places = hidden.ndim - 2  # pixels, or tokens
            hidden = hidden + (
                added.reshape(*added.shape, 1, 1) if places == 2 else added.reshape(len(added), *[1] * places, -1)
            )
        return self.rest(hidden)


class SyntheticGradients(WithFeedback):
    """The objective of synthetic gradients; its options are the fields of `alrpc.config.objectives.Synthetic`.

    The loss `exit` is that of a component's exit; `synthetic` is that of its synthesiser, 0 where nothing is heard.

    Raises:
        UsageError: for an unknown option, or a value that is not allowed.
    """

    losses = ("exit", "synthetic")
    own_parts = ("head", "pool")

    def __init__(self, target: Target, **options: Any):
        super().__init__(target)
        self.options = config.parse_section("objective", {"name": "synthetic", **options})
        self.delay = self.options.delay

    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        head = head_of(place, self.options, self.target.width)
        if place.number == len(place.blocks):
            return {"head": head}, place.beside
        output = check_output(place, "synthetic")
        code = self.target.width if self.options.label else None
        return {"head": head, "synthesiser": Synthesiser(output.shape, self.options.synthesiser_width, code)}, place.beside

    def lag(self, component: Component) -> int:
        return self.delay if hasattr(component, "synthesiser") else 0

    def keep(self, component: Component, entered: Tensors, left: Microbatch) -> Tensors:
        name = gives(component.block)[0]
        return {name: left.tensors[name], LABEL: left.beside[LABEL]}

    def learn(
        self, component: Component, leaving: Tensors, beside: Tensors, kept: Tensors = NOTHING, heard: Tensors = NOTHING
    ) -> tuple[Tensors, tuple[Tensor, ...]]:
        label = beside[LABEL]
        if not self.lag(component):
            exit = self.target.loss(self.exit(component, leaving).float(), label)
            return beside, (exit, exit.new_zeros(()))
        detached = {name: tensor.detach() for name, tensor in leaving.items()}
        exit = self.target.loss(self.exit(component, detached).float(), label)
        output = leaving[gives(component.block)[0]]
        (synthetic,) = self.absorb(component, kept, heard) if kept else (untaught(exit.new_zeros(()), component.synthesiser),)
        with torch.no_grad():
            predicted = self.predict(component, output, label) / len(label)
        first_order = (widened(output) * predicted).sum()  # its gradient at the output is what is predicted
        return beside, (exit, synthetic + first_order - first_order.detach())

    def absorb(self, component: Component, kept: Tensors, heard: Tensors) -> tuple[Tensor, ...]:
        """The mean squared error of what Ĝ predicts for an earlier micro-batch, against the gradient that was heard."""
        name = gives(component.block)[0]
        output, label = kept[name], kept[LABEL]
        gradient = heard.get(name, torch.zeros_like(output))  # 0 where the next block does not use the output
        if gradient.shape != output.shape or len(label) != len(output):
            raise ValueError(
                f"{name}: got a gradient {tuple(gradient.shape)} and {len(label)} labels for {tuple(output.shape)}"
            )
        return (functional.mse_loss(self.predict(component, output, label), widened(gradient) * len(label)),)

    def predict(self, component: Component, output: Tensor, label: Tensor) -> Tensor:
        """The gradient of each sample's loss at the block's output, float32 at least; that of their mean is 1 / N of it."""
        code = (self.target.represent(label).to(output.dtype),) if self.options.label else ()
        return widened(component.synthesiser(output, *code))

    def reply(
        self, component: Component, entered: Tensors, gradients: Tensors, kept: Tensors, heard: Tensors
    ) -> Tensors | None:
        return gradients

    def parameter_groups(self, component: Component) -> dict[str, list[nn.Parameter]]:
        block, head = list(component.block.parameters()), list(component.head.parameters())
        if not self.lag(component):
            return {"lr": [*block, *head]}
        return {"lr": block, "target_lr": [*head, *component.synthesiser.parameters()]}

    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        return call(component.head, leaving, takes=gives(component.block)[:1])
