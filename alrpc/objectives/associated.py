"""Associated learning: a bridge maps a component's output to its encoded target.

    s_{l-1} ──► f ──► s_l ──────────► next component
                       │
                       b ──► s'_l ─┐
                                   ├ associated loss (trains f and b)
    t_{l-1} ──► g ──► t_l ─┴─(no gradient)──► next component
                       │
                       h ──► t'_{l-1} ── autoencoder loss against t_{l-1} (trains g and h)

f is the block, b the bridge, g the target encoder, h the target decoder. The target representation t_l travels beside the
activations; t_0 is the representation of the label. Exit l is h_1(… h_l(s'_l)).

Kao & Chen, Associated Learning, Neural Computation 33(1), 2021, section 3; Wu et al., ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrpc import config
from alrpc.errors import UserError
from alrpc.models.pooling import Pooled, choose_pool
from alrpc.objectives.base import Component, Objective, Place, Tensors, call, gives
from alrpc.objectives.build import run_sample
from alrpc.objectives.targets import Classes, Labels, Target

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "none": nn.Identity}
LOSSES = {"mse": functional.mse_loss, "smooth_l1": functional.smooth_l1_loss}
CODE = "target"  # the name of t_l among the tensors beside the activations


class AssociatedLearning(Objective):
    """The objective of associated learning; its options are the fields of `alrpc.config.objectives.Associated`.

    Raises:
        UsageError: for an unknown option, or a value that is not allowed.
    """

    losses = ("associated", "autoencoder")
    exit_parts = ("decoder",)
    own_parts = ("bridge", "encoder", "decoder", "pool")
    about_exits = (
        "deep exits begin at chance: exit l is decoded by the decoders of components l to 1 and learns from what the components "
        "before it give, so the exits rise one after another"
    )

    def __init__(self, target: Target, **options: Any):
        super().__init__(target)
        chosen = config.parse_section("objective", {"name": "associated", **options})
        self.target_width = chosen.target_width
        self.bridge_widths = tuple(chosen.bridge_widths)
        self.activation = ACTIVATIONS[chosen.activation]
        self.decoder_activation = ACTIVATIONS[chosen.decoder_activation]
        self.pooling = chosen.pooling
        self.associated_loss = LOSSES[chosen.associated_loss]
        asked = chosen.autoencoder_loss == "cross_entropy" and isinstance(target, Classes)
        self.by_cross_entropy = asked or isinstance(target, Labels)
        """Whether the first component's decoder learns by cross entropy, as it always does for labels, of which outputs are scores.
        Later ones never do, since only t_0 is of 0 and 1."""

    @property
    def weighs_classes(self) -> bool:
        return self.by_cross_entropy

    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        number, own, code = place.number, place.own, place.beside[CODE]
        width = code.shape[-1]
        encoder = own.get("encoder")
        if encoder is None:
            encoder = nn.Sequential(nn.Linear(width, self.target_width), self.activation())
        encoded = run_sample(encoder, {"x": code}, f"the encoder of component {number}")
        decoder = own.get("decoder")
        if decoder is None:
            unsquashed = number == 1 and not isinstance(self.target, Classes)  # an activation would limit the range of h_1
            last = nn.Identity() if unsquashed else self.decoder_activation()
            decoder = nn.Sequential(nn.Linear(encoded.shape[-1], width), last)
        bridge = own.get("bridge")
        if bridge is None:
            bridge = self._bridge(place, encoded.shape[-1])
        parts = {"bridge": bridge, "encoder": encoder, "decoder": decoder}
        self._check_fit(place, parts, encoded)
        return parts, {CODE: encoded}

    def _bridge(self, place: Place, width: int) -> nn.Module:
        """The default b: a pool that reduces the block's output to one vector, then linear layers to `width`."""
        names = gives(place.block)[:1]
        pool = place.own.get("pool")
        if pool is None:
            pool = choose_pool(place.leaving, names[0], self.pooling)
        pooled = run_sample(pool, place.leaving, f"the pool of component {place.number}", names).shape[-1]
        layers = []
        for before, after in pairwise((pooled, *self.bridge_widths, width)):
            layers += [nn.Linear(before, after), self.activation()]
        return Pooled(pool, *layers)

    def _check_fit(self, place: Place, parts: dict[str, nn.Module], encoded: Tensor) -> None:
        """Check that the outputs of b and g have the same shape, and that the output of h has the shape of g's input."""
        number, code = place.number, place.beside[CODE]
        bridged = run_sample(parts["bridge"], place.leaving, f"the bridge of component {number}", gives(place.block)[:1])
        if bridged.shape != encoded.shape:
            raise UserError(
                f"the bridge of component {number} gives {tuple(bridged.shape)}, its encoder {tuple(encoded.shape)}; "
                "both must be of one shape"
            )
        decoded = run_sample(parts["decoder"], {"x": encoded}, f"the decoder of component {number}")
        if decoded.shape != code.shape:
            raise UserError(
                f"the decoder of component {number} gives {tuple(decoded.shape)}, but its encoder was given "
                f"{tuple(code.shape)}; a decoder leads back to that shape"
            )

    def begin(self, labels: Tensor) -> Tensors:
        return {CODE: self.target.represent(labels)}

    def learn(self, component: Component, leaving: Tensors, beside: Tensors) -> tuple[Tensors, tuple[Tensor, ...]]:
        code = beside[CODE]
        bridged = self.exit(component, leaving)
        encoded = component.encoder(code)
        decoded = component.decoder(encoded)
        associated = self.associated_loss(bridged, encoded.detach())
        if self.by_cross_entropy and component.number == 1:
            autoencoder = self.target.loss(decoded, self.target.decide(code))
        else:
            autoencoder = functional.mse_loss(decoded, code)
        return {CODE: encoded}, (associated, autoencoder)

    def parameter_groups(self, component: Component) -> dict[str, list[nn.Parameter]]:
        return {
            "lr": [*component.block.parameters(), *component.bridge.parameters()],
            "target_lr": [*component.encoder.parameters(), *component.decoder.parameters()],
        }

    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        return call(component.bridge, leaving, takes=gives(component.block)[:1])

    def decode(self, parts: Sequence[nn.ModuleDict], outputs: Sequence[Tensor]) -> Tensor:
        output = outputs[-1]
        for part in reversed(parts):
            output = part["decoder"](output)
        return output

    def probabilities(self, output: Tensor) -> Tensor:
        """Outputs that learn one-hot vectors by squared error estimate the probabilities themselves (Bishop, Neural Networks for
        Pattern Recognition, 1995, section 6.1.3), up to negative ones and a sum that is not 1; those by cross entropy are logits."""
        if self.by_cross_entropy:
            return super().probabilities(output)
        positive = output.float().clamp(min=0)
        positive = torch.where(positive.any(dim=1, keepdim=True), positive, 1.0)  # all are equally unlikely
        return positive / positive.sum(dim=1, keepdim=True)

    def training_only(self, component: Component, is_last: bool) -> list[nn.Module]:
        return [component.encoder] if is_last else [component.encoder, component.bridge]
