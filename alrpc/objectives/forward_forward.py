"""Forward-forward: every block tells inputs that bear their true label from inputs that bear a wrong one.

    x, with a label in its first numbers ──► f_1 ──► s_1, by length ──► f_2 ──► s_2 …
                                                      │                          │
                                    goodness Σ s² ── cross entropy against true or wrong (trains f)
                                                      │
                                                (no gradient)
                                                      r ──► scores ── cross entropy against the label (trains r)

f is the block, r the readout. Component 1 makes three rows of every sample: one with its label, a positive, one with a wrong label,
a negative, and one with all labels alike, a neutral; all positives come first, then all negatives, then all neutrals. Only the
positives and negatives have a goodness. The readout learns from the neutrals, since that is how a sample looks whose label is not
known: the network predicts from neutrals alone, and exit l is the readout of component l. So packets hold three rows a sample in
training, and one in evaluation; batch norm in a block sees all three kinds. Every block runs on vectors of one length, so that the
goodness of one says nothing to the next.

Hinton, The forward-forward algorithm: some preliminary investigations, 2022, sections 2 and 3.3; arXiv 2212.13345.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrpc import config
from alrpc.errors import UsageError
from alrpc.objectives.base import LABEL, Component, Objective, Place, Tensors, call, gives, takes
from alrpc.objectives.heads import head_of
from alrpc.objectives.targets import Classes, Target, check_learns

KINDS = 3  # positives, negatives, neutrals
MOMENTUM = 0.9  # of the running means of the units' activity


class ForwardForward(Objective):
    """The forward-forward objective; its options are the fields of `alrpc.config.objectives.ForwardForward`.

    Raises:
        UsageError: for an unknown option, a value that is not allowed, or a target that is no classification of two classes or more.
    """

    own_parts = ("head", "pool")

    def __init__(self, target: Target, **options: Any):
        super().__init__(target)
        check_learns("forward_forward", target, Classes)
        if target.width < 2:
            raise UsageError(f"objective.name: forward_forward learns from wrong labels, but the target is {target}")
        self.options = config.parse_section("objective", {"name": "forward_forward", **options})
        self.losses = ("goodness", "peer", "readout") if self.options.peer else ("goodness", "readout")

    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        if place.number == 1:
            self._check_input(takes(place.block)[0], place.entering)
        parts = {"readout": head_of(place, self.options, self.target.width)}
        if self.options.peer:
            parts["activity"] = Activity(place.leaving[gives(place.block)[0]])
        return parts, place.beside

    def _check_input(self, name: str, entering: Tensors) -> None:
        """Refuse an input that has no room for a label."""
        x, classes = entering[name], self.target.width
        if not x.is_floating_point():
            raise UsageError(
                f"objective.name: forward_forward writes labels into the input, but {name!r} holds indices ({x.dtype}), "
                "as of a text's words; use another objective"
            )
        if x[0].numel() < classes:
            raise UsageError(
                f"objective.name: forward_forward writes a number for each of {classes} classes into the input, but a sample's "
                f"{name!r} has {x[0].numel()}; use another objective"
            )

    def enter(self, component: Component, tensors: Tensors, beside: Tensors | None) -> Tensors:
        name = takes(component.block)[0]
        if component.number == 1:
            tensors = self._with_labels(name, tensors, beside)
        return {**tensors, name: to_length(tensors[name])}

    def _with_labels(self, name: str, tensors: Tensors, beside: Tensors | None) -> Tensors:
        """The tensors of an input, (N, ...): its neutrals to predict, and to train its positives, negatives and neutrals."""
        x, classes = tensors[name], self.target.width
        neutral = x.new_full((x.shape[0], classes), 1 / classes)  # len(x) would be a constant of an exported graph
        if beside is None:
            return {**tensors, name: write(x, neutral)}
        labels = beside[LABEL]
        wrong = (labels + torch.randint(1, classes, labels.shape, device=labels.device)) % classes
        codes = [functional.one_hot(label, classes).to(x.dtype) for label in (labels, wrong)]
        rows = {other: torch.cat([tensor] * KINDS) for other, tensor in tensors.items()}
        return {**rows, name: torch.cat([write(x, code) for code in (*codes, neutral)])}

    def learn(self, component: Component, leaving: Tensors, beside: Tensors) -> tuple[Tensors, tuple[Tensor, ...]]:
        labels = beside[LABEL]
        count = len(labels)
        activation = leaving[gives(component.block)[0]]
        losses = [goodness_loss(activation[: 2 * count].float(), self.options.goodness, self.options.threshold)]
        if self.options.peer:
            losses.append(self.options.peer * component.activity(activation[:count].float()))
        scores = self.exit(component, {name: tensor[2 * count :].detach() for name, tensor in leaving.items()})
        return beside, (*losses, self.target.cross_entropy(scores.float(), labels))

    def parameter_groups(self, component: Component) -> dict[str, list[nn.Parameter]]:
        return {"lr": list(component.block.parameters()), "target_lr": list(component.readout.parameters())}

    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        name = gives(component.block)[0]
        return call(component.readout, {**leaving, name: to_length(leaving[name])}, takes=(name,))

    def training_only(self, component: Component, is_last: bool) -> list[nn.Module]:
        return [] if is_last else [component.readout]


class Activity(nn.Module):
    """Peer normalisation: the units of a layer are to be equally active (Hinton, section 3).

    The loss is mean_c (m_c - mean_d m_d)², with m_c = 0.9 m'_c + 0.1 a_c, a_c the mean activation of unit c in the micro-batch,
    without m_c of the micro-batch before, m'_c, having a gradient. Units are the channels of an image, else the last dimension.

    Args:
        sample: activations of any number of samples, (N, ...).
    """

    def __init__(self, sample: Tensor):
        super().__init__()
        self.unit = 1 if sample.ndim > 3 else sample.ndim - 1
        self.register_buffer("mean", torch.zeros(sample.shape[self.unit]))

    def forward(self, activations: Tensor) -> Tensor:
        of_batch = activations.movedim(self.unit, -1).flatten(0, -2).mean(dim=0)
        mean = MOMENTUM * self.mean + (1 - MOMENTUM) * of_batch
        self.mean.copy_(mean.detach())
        return (mean - mean.mean()).square().mean()


def goodness_loss(activations: Tensor, goodness: str, threshold: float | None) -> Tensor:
    """The mean cross entropy of the sigmoid of g - threshold, against 1 for the first half of the rows, and 0 for the second.

    g is the sum or the mean of a row's squared activations.

    Args:
        activations: N positives, then N negatives: (2 N, ...).
        goodness: sum or mean.
        threshold: None for what activations of mean square 1 have: the numbers in a row for the sum, 1 for the mean.
    """
    squares = activations.flatten(1).square()
    g = squares.sum(dim=1) if goodness == "sum" else squares.mean(dim=1)
    if threshold is None:
        threshold = squares.shape[1] if goodness == "sum" else 1
    half = len(g) // 2
    positive = torch.cat([torch.ones_like(g[:half]), torch.zeros_like(g[half:])])
    return functional.binary_cross_entropy_with_logits(g - threshold, positive)


def to_length(x: Tensor) -> Tensor:
    """Each row of (N, ...) divided by the root of the mean of its squares, so that all are of one length; 0 stays 0."""
    mean = x.float().square().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    return x / mean.sqrt().clamp(min=1e-8).to(x.dtype)


def write(x: Tensor, code: Tensor) -> Tensor:
    """A copy of (N, ...) whose rows begin with the numbers of the code, (N, C)."""
    flat = x.flatten(1)
    return torch.cat([code, flat[:, code.shape[1] :]], dim=1).view(x.shape)
