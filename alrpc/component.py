"""The unit of learning: a block with its bridge, target encoder and target decoder, and two local losses.

    s_{l-1} ──► f ──► s_l ──────────► next component
                       │
                       b ──► s'_l ─┐
                                   ├ associated loss (trains f and b)
    t_{l-1} ──► g ──► t_l ─┴─(no gradient)──► next component
                       │
                       h ──► t'_{l-1} ── autoencoder loss against t_{l-1} (trains g and h)

Kao & Chen, Associated Learning, Neural Computation 33(1), 2021, section 3; Wu et al., ICLR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Tensors = dict[str, Tensor]
ALIGNMENT = 64  # bytes, of what torch allocates on a CPU

ASSOCIATED_LOSSES = {"mse": functional.mse_loss, "smooth_l1": functional.smooth_l1_loss}


@dataclass(frozen=True)
class Classes:
    """A classification target: a class index of 0 … count - 1, presented to the first component as a one-hot vector."""

    count: int

    metric = "accuracy"

    @property
    def width(self) -> int:
        return self.count

    def represent(self, labels: Tensor) -> Tensor:
        """t_0 for labels of shape (N,), integers: one-hot, (N, count), float32."""
        return functional.one_hot(labels.long(), self.count).float()

    def decide(self, output: Tensor) -> Tensor:
        """The class index, (N,), of outputs of shape (N, count)."""
        return output.argmax(dim=-1)

    def score(self, output: Tensor, labels: Tensor) -> float:
        """How many of N outputs are right; over a data set, divided by its size, the accuracy."""
        return (self.decide(output) == labels).sum().item()


@dataclass(frozen=True)
class Values:
    """A regression target: a vector of `width` floats, presented to the first component as it is."""

    width: int
    metric = "mse"

    def represent(self, labels: Tensor) -> Tensor:
        """t_0 for labels of shape (N, width), or (N,) when the width is 1: (N, width), float32."""
        return labels.float().reshape(len(labels), self.width)

    def decide(self, output: Tensor) -> Tensor:
        return output

    def score(self, output: Tensor, labels: Tensor) -> float:
        """Squared error summed over N outputs, averaged over the width; divided by N, the mean squared error."""
        return (output - self.represent(labels)).square().mean(dim=-1).double().sum().item()


Target = Classes | Values


def call(module: nn.Module, tensors: Tensors, takes: tuple[str, ...] = ("x",)) -> Tensor | tuple[Tensor, ...]:
    """Call a module with the named tensors it takes: its own `takes` attribute, else the default given here."""
    names = getattr(module, "takes", takes)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise KeyError(f"{type(module).__name__} takes {missing[0]!r}, but only {sorted(tensors)} reach it")
    return module(*(tensors[name] for name in names))


def gives(module: nn.Module) -> tuple[str, ...]:
    """The names of the tensors that a block gives: its own `gives` attribute, else ("x",)."""
    return getattr(module, "gives", ("x",))


def canonical(tensor: Tensor) -> Tensor:
    """The tensor without its graph, laid out as it would arrive from another process.

    A kernel may round differently for a strided view or a misaligned start; with this a component sees the same layout
    whether its input came from the next line of a loop or from a socket.
    """
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.storage_offset() or tensor.data_ptr() % ALIGNMENT else tensor


def storage(tensor: Tensor) -> int:
    """Equal for tensors that share memory."""
    return tensor.untyped_storage().data_ptr()


@dataclass(frozen=True)
class Step:
    """What one component makes of one micro-batch: what it hands on, and its two losses (scalars, with graph)."""

    tensors: Tensors
    target: Tensor
    associated_loss: Tensor
    autoencoder_loss: Tensor


class Component(nn.Module):
    """f, b, g and h of one component, and nothing else.

    A block takes the tensor "x" and gives "x" unless it says otherwise with the attributes `takes` and `gives` (tuples
    of names, in the order of its arguments and results). Tensors it does not take travel past it unchanged.
    """

    def __init__(
        self,
        block: nn.Module,
        bridge: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        associated_loss: str = "mse",
        autoencoder_loss: str = "mse",
    ):
        super().__init__()
        self.block = block
        self.bridge = bridge
        self.encoder = encoder
        self.decoder = decoder
        self.associated_loss = associated_loss
        self.autoencoder_loss = autoencoder_loss

    def activate(self, tensors: Tensors) -> Tensors:
        """f_l: the named tensors that reach the component -> those that leave it, (N, ...) each."""
        output = call(self.block, tensors)
        names = gives(self.block)
        return {**tensors, **dict(zip(names, output if isinstance(output, tuple) else (output,), strict=True))}

    def associate(self, tensors: Tensors) -> Tensor:
        """b_l: the named tensors that leave the block -> s'_l, in the space of t_l."""
        return call(self.bridge, tensors, takes=gives(self.block)[:1])

    @torch.no_grad()
    def evaluate(self, tensors: Tensors) -> tuple[Tensors, Tensor]:
        """What leaves the component, and its bridge's output: exit l before it is decoded."""
        tensors = self.activate(tensors)
        bridged = self.associate(tensors)
        if any(storage(bridged) == storage(tensor) for tensor in tensors.values()):
            bridged = bridged.clone()  # the next block may work in place
        return {name: canonical(tensor) for name, tensor in tensors.items()}, canonical(bridged)

    def forward(self, tensors: Tensors, target: Tensor) -> Step:
        """One forward pass of all four functions on (s_{l-1}, t_{l-1})."""
        tensors, encoded, associated_loss, autoencoder_loss = self.compute(tensors, target)
        tensors = {name: canonical(tensor) for name, tensor in tensors.items()}
        return Step(tensors, canonical(encoded), associated_loss, autoencoder_loss)

    def compute(self, tensors: Tensors, target: Tensor) -> tuple[Tensors, Tensor, Tensor, Tensor]:
        """The arithmetic of `forward`, which torch.compile may replace: s_l and what travels with it, t_l, the two losses."""
        tensors = self.activate(tensors)
        associated = self.associate(tensors)
        encoded = self.encoder(target)
        decoded = self.decoder(encoded)
        associated_loss = ASSOCIATED_LOSSES[self.associated_loss](associated, encoded.detach())
        return tensors, encoded, associated_loss, self._reconstruct(decoded, target)

    def _reconstruct(self, decoded: Tensor, target: Tensor) -> Tensor:
        if self.autoencoder_loss == "cross_entropy":  # only where t_{l-1} is one-hot: the first component
            return functional.cross_entropy(decoded, target.argmax(dim=-1))
        return functional.mse_loss(decoded, target)

    def forward_parameters(self) -> list[nn.Parameter]:
        """What the associated loss trains: f and b."""
        return [*self.block.parameters(), *self.bridge.parameters()]

    def target_parameters(self) -> list[nn.Parameter]:
        """What the autoencoder loss trains: g and h."""
        return [*self.encoder.parameters(), *self.decoder.parameters()]


def decode(decoders: list[nn.Module], bridged: Tensor) -> Tensor:
    """h_1(… h_l(s'_l)): from the target space of exit l = len(decoders) back to the space of the labels."""
    for decoder in reversed(decoders):
        bridged = decoder(bridged)
    return bridged


def as_tensors(inputs: Tensor | Tensors) -> Tensors:
    """A network's input as named tensors; a lone tensor is "x"."""
    return {"x": inputs} if isinstance(inputs, torch.Tensor) else dict(inputs)
