"""Supervised contrastive learning: every block brings the samples of a class together and the classes apart.

    s_{l-1} ──► f ──► s_l ──────────► next component
                       │ │
                       │ p ──► z_l ── contrastive loss within the micro-batch (trains f and p)
                  (no gradient)
                       h ──► scores ── cross entropy against the label (trains h)

f is the block, p the projector, h the predictor. The label travels beside the activations. Exit l is the predictor of component l.

SCPL: supervised contrastive parallel learning, arXiv 2602.00062; the loss is that of Khosla et al., Supervised Contrastive
Learning, NeurIPS 2020, equation 2, but for the weight of a sample.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrpc import config
from alrpc.objectives.base import LABEL, Component, Objective, Place, Tensors, call, gives
from alrpc.objectives.heads import head_of, make_projector
from alrpc.objectives.targets import Classes, Target, check_learns


class Contrastive(Objective):
    """The objective of SCPL; its options are the fields of `alrpc.config.objectives.Contrastive`.

    Raises:
        UsageError: for an unknown option, a value that is not allowed, or a target that is no classification.
    """

    losses = ("contrastive", "predictor")
    own_parts = ("head", "pool")

    def __init__(self, target: Target, **options: Any):
        super().__init__(target)
        check_learns("contrastive", target, Classes)
        self.options = config.parse_section("objective", {"name": "contrastive", **options})

    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        chosen = self.options
        projector, _ = make_projector(place, chosen.projector_widths, chosen.pooling)
        predictor = head_of(place, chosen, self.target.width)
        return {"projector": projector, "predictor": predictor}, place.beside

    def learn(self, component: Component, leaving: Tensors, beside: Tensors) -> tuple[Tensors, tuple[Tensor, ...]]:
        labels = beside[LABEL]
        projected = call(component.projector, leaving, takes=gives(component.block)[:1]).float()
        with torch.autocast(projected.device.type, enabled=False):  # the temperature magnifies bfloat16's rounding
            loss = contrastive_loss(projected, labels, self.options.temperature, self.options.tau_plus)
        scores = self.exit(component, {name: tensor.detach() for name, tensor in leaving.items()})
        return beside, (loss, self.target.cross_entropy(scores.float(), labels))

    def parameter_groups(self, component: Component) -> dict[str, list[nn.Parameter]]:
        return {
            "lr": [*component.block.parameters(), *component.projector.parameters()],
            "target_lr": [*component.predictor.parameters()],
        }

    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        return call(component.predictor, leaving, takes=gives(component.block)[:1])

    def training_only(self, component: Component, is_last: bool) -> list[nn.Module]:
        return [component.projector] if is_last else [component.projector, component.predictor]


def contrastive_loss(vectors: Tensor, labels: Tensor, temperature: float, tau_plus: float = 0.0) -> Tensor:
    """SCPL's loss of N samples: -1/N Σ_i Σ_{j ∈ P(i)} log p_ij / n_i.

    With a_ij = cos(z_i, z_j) / temperature, P(i) the other samples of i's class, and N(i) those of other classes:

        log p_ij = a_ij - log(Σ_{k ∈ P(i)} exp a_ik + Σ_{k ∈ N(i)} exp a_ik)

    n_i counts i's class with i itself, so that a sample without others of its class contributes 0; a single sample has the loss 0.
    With tau_plus the second sum is corrected for the share tau_plus of negatives that are of i's class after all, e being the mean
    of exp a_ik over P(i) (Chuang et al., Debiased Contrastive Learning, NeurIPS 2020, equation 7):

        max((Σ_{k ∈ N(i)} exp a_ik - tau_plus |N(i)| e) / (1 - tau_plus), |N(i)| exp(-1 / temperature))

    Args:
        vectors: z, (N, D).
        labels: classes, (N,).
    """
    count = len(vectors)
    if count == 1:
        return (vectors * 0).sum()
    unit = functional.normalize(vectors)
    self_pairs = torch.eye(count, dtype=torch.bool, device=vectors.device)
    same = labels[:, None] == labels
    positive = same & ~self_pairs
    similarity = (unit @ unit.T / temperature).masked_fill(self_pairs, -math.inf)
    largest = similarity.detach().amax(dim=1, keepdim=True)
    shifted = similarity - largest
    terms = shifted.exp()
    if tau_plus == 0:
        total = terms.sum(dim=1, keepdim=True)
    else:
        positives, negatives = (pairs.sum(dim=1, keepdim=True, dtype=terms.dtype) for pairs in (positive, ~same))
        of_positives = (terms * positive).sum(dim=1, keepdim=True)
        of_negatives = (terms * ~same).sum(dim=1, keepdim=True)
        false = tau_plus * negatives * of_positives / positives.clamp(min=1)
        least = negatives * (-1 / temperature - largest).exp()
        total = of_positives + torch.maximum((of_negatives - false) / (1 - tau_plus), least)
    log_p = (shifted - total.log()).masked_fill(~positive, 0)
    return -(log_p.sum(dim=1) / same.sum(dim=1)).mean()
