"""Local classifiers: every block has a head that classifies its output, and learns by cross entropy.

    s_{l-1} ──► f ──► s_l ──────────► next component
                       │
                       a ──► scores ── cross entropy against the label (trains f and a)

f is the block, a the head. The label travels beside the activations. Exit l is the head of component l.

Belilovsky, Eickenberg & Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, section 3.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from alrpc import config
from alrpc.objectives.base import LABEL, Component, Objective, Place, Target, Tensors, call, gives, refuse_values
from alrpc.objectives.heads import head_of


class Classifier(Objective):
    """The objective of local classifiers; its options are the fields of `alrpc.config.objectives.Classifier`.

    Raises:
        UsageError: for an unknown option, a value that is not allowed, or a target that is no classification.
    """

    losses = ("classifier",)
    own_parts = ("head", "pool")

    def __init__(self, target: Target, **options: Any):
        super().__init__(target)
        refuse_values(target, "classifier")
        self.options = config.parse_section("objective", {"name": "classifier", **options})

    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        chosen = self.options
        return {"head": head_of(place, chosen.head, chosen.width, chosen.pooling, self.target.width)}, place.beside

    def learn(self, component: Component, leaving: Tensors, beside: Tensors) -> tuple[Tensors, tuple[Tensor, ...]]:
        scores = self.exit(component, leaving)
        smoothing = self.options.label_smoothing
        return beside, (functional.cross_entropy(scores.float(), beside[LABEL], label_smoothing=smoothing),)

    def parameter_groups(self, component: Component) -> dict[str, list[nn.Parameter]]:
        return {"lr": [*component.block.parameters(), *component.head.parameters()]}

    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        return call(component.head, leaving, takes=gives(component.block)[:1])

    def training_only(self, component: Component, is_last: bool) -> list[nn.Module]:
        return [] if is_last else [component.head]
