"""Local classifiers: every block has a head that classifies its output, and learns by cross entropy: of a class, or of labels.

    s_{l-1} ──► f ──► s_l ──────────► next component
                       │
                       a ──► scores ── cross entropy against the label (trains f and a)

f is the block, a the head. The label travels beside the activations. Exit l is the head of component l.

Belilovsky, Eickenberg & Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from alrpc import config
from alrpc.config.own_code import call_own, import_function
from alrpc.errors import UsageError
from alrpc.objectives.base import LABEL, Component, Objective, Place, Tensors, call, gives, takes
from alrpc.objectives.heads import head_of
from alrpc.objectives.targets import Classes, Labels, Target, check_learns
from alrpc.objectives.terms import (
    check_branches,
    make_embedding,
    make_reconstructor,
    similarity_loss,
    transport_loss,
    watch_branches,
)

INPUT = "network_input"  # the name of the network's input among the tensors that travel, for `reconstruction`


class Classifier(Objective):
    """The objective of local classifiers; its options are the fields of `alrpc.config.objectives.Classifier`.

    Raises:
        UsageError: for an unknown option, a value that is not allowed, or a target of values.
    """

    own_parts = ("head", "pool")

    def __init__(self, target: Target, **options: Any):
        super().__init__(target)
        check_learns("classifier", target, Classes, Labels)
        self.options = config.parse_section("objective", {"name": "classifier", **options})
        self.combines_exits = self.options.ensemble
        self._own = import_function(self.options.loss, "objective.loss") if ":" in self.options.loss else None
        if self._own is not None and self.options.label_smoothing:
            raise UsageError(
                "objective.label_smoothing: belongs to the cross entropy, but objective.loss is a function of your own"
            )
        terms = [name for name in ("similarity", "transport", "reconstruction") if getattr(self.options, name)]
        self.losses = ("classifier", *terms)

    @property
    def weighs_classes(self) -> bool:
        return self._own is None

    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        parts = {"head": head_of(place, self.options, self.target.width)}
        if self.options.similarity:
            parts["embedding"] = make_embedding(place)
        if self.options.transport:
            check_branches(place.blocks)
            watch_branches(place.block)
        if not self.options.reconstruction:
            return parts, place.beside
        wanted = place.entering[takes(place.block)[0]] if place.number == 1 else place.beside[INPUT]
        if place.number < len(place.blocks):  # the last block may forget what does not help to classify
            parts["reconstructor"] = make_reconstructor(place, wanted)
        return parts, {**place.beside, INPUT: wanted}

    def enter(self, component: Component, tensors: Tensors, beside: Tensors | None) -> Tensors:
        if component.number > 1 or beside is None or not self.options.reconstruction:
            return tensors
        return {**tensors, INPUT: tensors[takes(component.block)[0]].clone()}  # which the block may overwrite

    def learn(self, component: Component, leaving: Tensors, beside: Tensors) -> tuple[Tensors, tuple[Tensor, ...]]:
        label, share = beside[LABEL], self.options.similarity
        scores = self.exit(component, leaving).float()
        loss = self._loss(scores, label)
        losses = [(1 - share) * loss if share else loss]
        if share:
            features = call(component.embedding, leaving, takes=gives(component.block)[:1]).float()
            losses.append(share * similarity_loss(features, self.target.represent(label)))
        if self.options.transport:
            losses.append(self.options.transport * transport_loss(component.block, like=loss))
        if self.options.reconstruction:
            losses.append(self.options.reconstruction * self._reconstruction(component, leaving, like=loss))
        return beside, tuple(losses)

    def _loss(self, scores: Tensor, label: Tensor) -> Tensor:
        if self._own is None:
            return self.target.cross_entropy(scores, label, self.options.label_smoothing)
        loss = call_own(self._own, self.options.loss, "objective.loss", scores, label)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(f"objective.loss: {self.options.loss} gave {got}; it must give a scalar tensor")
        return loss

    def _reconstruction(self, component: Component, leaving: Tensors, like: Tensor) -> Tensor:
        """The mean squared error of the rebuilt input; 0, without graph, in the last component."""
        if not hasattr(component, "reconstructor"):
            return like.new_zeros(())
        rebuilt = call(component.reconstructor, leaving, takes=gives(component.block)[:1])
        return functional.mse_loss(rebuilt.float(), leaving[INPUT])

    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        return call(component.head, leaving, takes=gives(component.block)[:1])

    def decode(self, parts: Sequence[nn.ModuleDict], outputs: Sequence[Tensor]) -> Tensor:
        if not self.combines_exits:
            return outputs[-1]
        return sum(self.target.averageable(output) for output in outputs) / len(outputs)

    def training_only(self, component: Component, is_last: bool) -> list[nn.Module]:
        used = ("block", "head") if is_last or self.combines_exits else ("block",)
        return [part for name, part in component.named_children() if name not in used]
