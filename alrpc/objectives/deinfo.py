"""DeInfoReg: every block makes its samples correlate as their labels do.

    s_{l-1} ──► f ──► s_l ──────────► next component
                       │
                       p ──► z_l ── invariance, covariance and variance within the micro-batch (train f and p)
                              │
                              w ──► scores ── cross entropy against the label (trains f, p and w)

f is the block, p the projector, w the classifier. The label travels beside the activations. Exit l is w_l(p_l(s_l)).

DeInfoReg: a decoupled learning framework for better training throughput, arXiv 2506.18193; its regularisation is that of Bardes,
Ponce & LeCun, VICReg, ICLR 2022, with labels in the place of a second view.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrpc import config
from alrpc.objectives.base import LABEL, Component, Objective, Place, Tensors, call, gives
from alrpc.objectives.heads import BatchNorm, make_projector
from alrpc.objectives.targets import Classes, Target, check_learns
from alrpc.objectives.terms import similarity_loss

EPSILON = 1e-7  # added to a variance below a root


class Deinfo(Objective):
    """The objective of DeInfoReg; its options are the fields of `alrpc.config.objectives.Deinfo`.

    Raises:
        UsageError: for an unknown option, a value that is not allowed, or a target that is no classification.
    """

    losses = ("invariance", "covariance", "variance", "classifier")
    own_parts = ("pool",)

    def __init__(self, target: Target, **options: Any):
        super().__init__(target)
        check_learns("deinfo", target, Classes)
        self.options = config.parse_section("objective", {"name": "deinfo", **options})

    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        projector, width = make_projector(place, self.options.projector_widths, self.options.pooling, norm=True)
        classifier = nn.Sequential(BatchNorm(width), nn.ReLU(), nn.Linear(width, self.target.width))
        return {"projector": projector, "classifier": classifier}, place.beside

    def learn(self, component: Component, leaving: Tensors, beside: Tensors) -> tuple[Tensors, tuple[Tensor, ...]]:
        chosen, labels = self.options, beside[LABEL]
        projected = self._project(component, leaving)
        scores = component.classifier(projected.detach() if chosen.detach else projected)
        with torch.autocast(projected.device.type, enabled=False):  # correlations are differences of near numbers
            unit = functional.normalize(projected.float())
            losses = (
                chosen.invariance * similarity_loss(unit, self.target.represent(labels)),
                chosen.covariance * covariance(unit),
                chosen.variance * variance(unit),
                chosen.classifier * self.target.cross_entropy(scores.float(), labels),
            )
        return beside, losses

    def _project(self, component: Component, leaving: Tensors) -> Tensor:
        return call(component.projector, leaving, takes=gives(component.block)[:1])

    def parameter_groups(self, component: Component) -> dict[str, list[nn.Parameter]]:
        return {"lr": list(component.parameters())}

    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        return component.classifier(self._project(component, leaving))

    def training_only(self, component: Component, is_last: bool) -> list[nn.Module]:
        return [] if is_last else [component.projector, component.classifier]


def covariance(vectors: Tensor) -> Tensor:
    """The sum over all pairs of different numbers of vectors, (N, D), of their squared covariance over the samples, divided by D."""
    count, width = vectors.shape
    centred = vectors - vectors.mean(dim=0)
    # C'C and CC' have the same sum of squares; the smaller one is computed.
    products = centred @ centred.T if count < width else centred.T @ centred
    return (products.square().sum() - centred.square().sum(dim=0).square().sum()) / count**2 / width


def variance(vectors: Tensor) -> Tensor:
    """The mean over the D numbers of max(0, 1 - √(v + 1e-7)) / N, v the variance of a number over the N samples, (N, D)."""
    deviation = (vectors.var(dim=0, unbiased=False) + EPSILON).sqrt()
    return (1 - deviation).clamp(min=0).mean() / len(vectors)
