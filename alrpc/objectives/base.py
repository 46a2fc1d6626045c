"""The unit of learning: a block with the modules that its objective gives it; and what an objective is.

activations ──► block ──► activations ──► next component
                  │
beside ────► the objective's modules ──► beside ──► next component
                  │
                losses (train block and modules; no gradient enters or leaves a component)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

Tensors = dict[str, Tensor]
ALIGNMENT = 64  # bytes, of what torch allocates on a CPU


@dataclass(frozen=True)
class Classes:
    """A classification target: a class index of 0 … count - 1, represented as a one-hot vector."""

    count: int

    metric = "accuracy"

    @property
    def width(self) -> int:
        return self.count

    def blank(self, samples: int) -> Tensor:
        """Labels that stand for any: (samples,), int64."""
        return torch.zeros(samples, dtype=torch.int64)

    def represent(self, labels: Tensor) -> Tensor:
        """Labels of shape (N,), integers, as one-hot vectors, (N, count), float32."""
        return functional.one_hot(labels.long(), self.count).float()

    def decide(self, output: Tensor) -> Tensor:
        """The class index, (N,), of outputs of shape (N, count)."""
        return output.argmax(dim=-1)

    def score(self, output: Tensor, labels: Tensor) -> float:
        """How many of N outputs are right; over a data set, divided by its size, the accuracy."""
        return (self.decide(output) == labels).sum().item()


@dataclass(frozen=True)
class Values:
    """A regression target: a vector of `width` floats, represented by itself."""

    width: int
    metric = "mse"

    def blank(self, samples: int) -> Tensor:
        """Labels that stand for any: (samples, width), float32."""
        return torch.zeros(samples, self.width)

    def represent(self, labels: Tensor) -> Tensor:
        """Labels of shape (N, width), or (N,) when the width is 1: (N, width), float32."""
        return labels.float().reshape(len(labels), self.width)

    def decide(self, output: Tensor) -> Tensor:
        return output

    def score(self, output: Tensor, labels: Tensor) -> float:
        """Squared error summed over N outputs, averaged over the width; divided by N, the mean squared error."""
        return (output - self.represent(labels)).square().mean(dim=-1).double().sum().item()


Target = Classes | Values


@dataclass(frozen=True)
class Microbatch:
    """What enters or leaves a component."""

    tensors: Tensors
    """The activations by name, (N, ...) each, and what else the blocks pass on."""
    beside: Tensors = field(default_factory=dict)
    """What the objective sends beside them, by names of its own, (N, ...) each."""


@dataclass(frozen=True)
class Place:
    """Where an objective builds the modules of a component; all shapes are those of a sample."""

    number: int
    """The component's, from 1."""
    block: nn.Module
    leaving: Tensors
    """The named tensors that leave the block."""
    beside: Tensors
    """What the component before sends beside the activations."""
    own: Mapping[str, nn.Module]
    """The user's own modules, by the name of the part that each stands for."""


class Objective(ABC):
    """What every component of a network learns. One for a network; it has no parameters, since components have them all."""

    losses: tuple[str, ...]
    """Their names, in the order in which `learn` gives them."""
    exit_parts: tuple[str, ...] = ()
    """The modules of every component that `decode` needs, by name; the last stage is sent their parameters."""

    def __init__(self, target: Target):
        self.target = target

    @abstractmethod
    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        """New modules for a component, by name, drawn from torch's global generator; and what leaves beside, for the sample.

        Raises:
            UserError: naming the component whose parts do not fit together.
        """

    @abstractmethod
    def begin(self, labels: Tensor) -> Tensors:
        """What enters the first component beside the activations, for labels of N samples."""

    @abstractmethod
    def learn(self, component: Component, leaving: Tensors, beside: Tensors) -> tuple[Tensors, tuple[Tensor, ...]]:
        """What leaves beside, and the losses (scalars with graph), of a component whose block has given `leaving`.

        Args:
            beside: what entered beside the activations.
        """

    @abstractmethod
    def parameter_groups(self, component: Component) -> dict[str, list[nn.Parameter]]:
        """All of a component's parameters, by the learning rate that they have: `lr` or `target_lr`. Each is clipped by itself."""

    @abstractmethod
    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        """The component's own prediction, (N, ...), not yet decoded."""

    def decode(self, parts: Sequence[nn.ModuleDict], output: Tensor) -> Tensor:
        """The prediction of exit l in the space of the labels, (N, width).

        Args:
            parts: the `exit_parts` of components 1 … l.
            output: what `exit` gave for component l.
        """
        return output

    @abstractmethod
    def training_only(self, component: Component, is_last: bool) -> list[nn.Module]:
        """The modules that the prediction of the network's last exit does not use."""


class Component(nn.Module):
    """A block and its objective's modules, which are attributes by their names.

    A block takes the tensor "x" and gives "x" unless it says otherwise with the attributes `takes` and `gives` (tuples
    of names, in the order of its arguments and results). Tensors it does not take travel past it unchanged.
    """

    def __init__(self, number: int, block: nn.Module, objective: Objective, parts: Mapping[str, nn.Module]):
        super().__init__()
        self.number = number
        self.objective = objective
        self.block = block
        for name, part in parts.items():
            self.add_module(name, part)

    def activate(self, tensors: Tensors) -> Tensors:
        """The named tensors that reach the component -> those that leave its block, (N, ...) each."""
        output = call(self.block, tensors)
        names = gives(self.block)
        return {**tensors, **dict(zip(names, output if isinstance(output, tuple) else (output,), strict=True))}

    def forward(self, batch: Microbatch) -> tuple[Microbatch, tuple[Tensor, ...]]:
        """What leaves the component, without graph, and its losses, scalars with graph."""
        tensors, beside, losses = self.compute(batch.tensors, batch.beside)
        return Microbatch(*({name: canonical(t) for name, t in named.items()} for named in (tensors, beside))), losses

    def compute(self, tensors: Tensors, beside: Tensors) -> tuple[Tensors, Tensors, tuple[Tensor, ...]]:
        """The arithmetic of `forward`, which torch.compile may replace."""
        leaving = self.activate(tensors)
        beside, losses = self.objective.learn(self, leaving, beside)
        return leaving, beside, losses

    @torch.no_grad()
    def evaluate(self, tensors: Tensors) -> tuple[Tensors, Tensor]:
        """What leaves the component, and its exit before it is decoded."""
        leaving = self.activate(tensors)
        output = self.objective.exit(self, leaving)
        if any(storage(output) == storage(tensor) for tensor in leaving.values()):
            output = output.clone()  # the next block may work in place
        return {name: canonical(tensor) for name, tensor in leaving.items()}, canonical(output)

    def exit_parts(self) -> nn.ModuleDict:
        """The modules that decoding an exit at or behind this component needs."""
        return nn.ModuleDict({name: getattr(self, name) for name in self.objective.exit_parts})


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


def as_tensors(inputs: Tensor | Tensors) -> Tensors:
    """A network's input as named tensors; a lone tensor is "x"."""
    return {"x": inputs} if isinstance(inputs, torch.Tensor) else dict(inputs)


@contextmanager
def eval_mode(module: nn.Module):
    """Evaluation mode inside, each submodule's own mode again after."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
