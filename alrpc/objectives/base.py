"""The unit of learning, a component: a block with the modules of its objective; and the interface of objectives.

activations ──► block ──► activations ──► next component
                  │
beside ────► the objective's modules ──► beside ──► next component
                  │
                losses (train block and modules; no gradient enters or leaves a component)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alrpc.models.modes import eval_mode as eval_mode
from alrpc.objectives.handover import pack, unpack
from alrpc.objectives.targets import Target, check_target

Tensors = dict[str, Tensor]
LABEL = "label"  # the name of the label among the tensors beside the activations
ALIGNMENT = 64  # bytes, alignment of torch's allocations on a CPU


@dataclass(frozen=True)
class Microbatch:
    """The tensors that enter or leave a component."""

    tensors: Tensors
    """The activations by name, (N, ...) each, and other tensors that the blocks pass on, such as a mask."""
    beside: Tensors = field(default_factory=dict)
    """The tensors that the objective sends beside the activations, by its own names, (N, ...) each."""


@dataclass(frozen=True)
class Place:
    """What an objective needs to build the modules of a component; all shapes are those of a sample."""

    number: int
    """The component's number, from 1."""
    blocks: Sequence[nn.Module]
    """The blocks of all components, of which an objective may use the architecture."""
    entering: Tensors
    """The named tensors that enter the block."""
    leaving: Tensors
    """The named tensors that leave the block."""
    beside: Tensors
    """The tensors that the previous component sends beside the activations."""
    own: Mapping[str, nn.Module]
    """The user's own modules, by the name of the part that each one replaces."""

    @property
    def block(self) -> nn.Module:
        return self.blocks[self.number - 1]


class Objective(ABC):
    """What every component of a network learns. A network has one objective, which has no parameters: the components own them."""

    losses: tuple[str, ...]
    """Names of the losses, in the order in which `learn` returns them."""
    exit_parts: tuple[str, ...] = ()
    """Names of the modules of every component that `decode` needs; the last stage receives their parameters."""
    own_parts: tuple[str, ...] = ()
    """Names of the parts that a model, or the user, may give for each component instead of the default."""
    delay: int = 0
    """Micro-batches after which a component hears from the next one; 0 for an objective in which nothing travels back. See
    `alrpc.objectives.feedback`."""
    combines_exits: bool = False
    """Whether `decode` needs the outputs of all components up to the exit's."""
    about_exits: str = ""
    """A sentence for users on why deep exits may be no better than chance at first; "" where they should be."""

    def __init__(self, target: Target):
        check_target(target)
        self.target = target

    @property
    def weighs_classes(self) -> bool:
        """Whether one of its losses is `Classes.cross_entropy`, in which classes may weigh differently."""
        return True

    @abstractmethod
    def build(self, place: Place) -> tuple[dict[str, nn.Module], Tensors]:
        """Build a component's modules, with parameters drawn from torch's global generator.

        Returns:
            The modules by name, and the tensors that leave the component beside the activations, for the sample.

        Raises:
            UserError: naming the component whose parts do not fit together.
        """

    def begin(self, labels: Tensor) -> Tensors:
        """The tensors that enter the first component beside the activations, for the labels of N samples.

        Unless an objective says otherwise: as the target prepares them, class indices, (N,), int64, or labels or values, (N, width),
        float32, under the name `label`.
        """
        return {LABEL: self.target.prepare(labels)}

    def enter(self, component: Component, tensors: Tensors, beside: Tensors | None) -> Tensors:
        """The tensors that the component's block runs on, made of those that enter the component, (N, ...) each; the same unless
        an objective says otherwise. In training it may draw from the component's random numbers.

        Args:
            beside: the tensors that enter beside the activations; None when the network predicts.
        """
        return tensors

    @abstractmethod
    def learn(self, component: Component, leaving: Tensors, beside: Tensors) -> tuple[Tensors, tuple[Tensor, ...]]:
        """Compute what a component sends beside the activations, and its losses.

        Args:
            leaving: the tensors that leave the component's block.
            beside: the tensors that entered the component beside the activations.

        Returns:
            The tensors that leave the component beside the activations, and the losses, scalars with graph.
        """

    def parameter_groups(self, component: Component) -> dict[str, list[nn.Parameter]]:
        """All parameters of a component, by their learning rate: `lr`, `target_lr`, or a name in the field group_lr.

        Each group is clipped by itself.
        """
        return {"lr": list(component.parameters())}

    @abstractmethod
    def exit(self, component: Component, leaving: Tensors) -> Tensor:
        """The component's own prediction, (N, ...), before decoding."""

    def decode(self, parts: Sequence[nn.ModuleDict], outputs: Sequence[Tensor]) -> Tensor:
        """Decode the prediction of exit l to the space of the labels, (N, width).

        Args:
            parts: the `exit_parts` of components 1 … l.
            outputs: the results of `exit` for components 1 … l if the objective combines exits; else at least the last of them.
        """
        return outputs[-1]

    def probabilities(self, output: Tensor) -> Tensor:
        """The probabilities of the classes, or of the labels, (N, width), by the decoded output of an exit; those that the target has
        for it, unless an objective whose outputs are no logits says otherwise. They rank the classes as the output does."""
        return self.target.probabilities(output)

    def training_only(self, component: Component, is_last: bool) -> list[nn.Module]:
        """The component's modules that the prediction of the network's last exit does not use: all but the last exit's, unless an
        objective says otherwise."""
        return [] if is_last else [part for name, part in component.named_children() if name != "block"]


class Component(nn.Module):
    """A block and the modules of its objective, which are attributes under their names.

    A block takes the tensor "x" and gives "x", unless it has the attributes `takes` and `gives` (tuples of names, in the order
    of its arguments and results). Tensors that it does not take are passed on unchanged.
    """

    def __init__(self, number: int, block: nn.Module, objective: Objective, parts: Mapping[str, nn.Module]):
        super().__init__()
        self.number = number
        self.objective = objective
        self.block = block
        self.frozen = False
        self.handover = "fp32"
        for name, part in parts.items():
            self.add_module(name, part)

    def freeze(self) -> None:
        """Train the block no more: its parameters and buffers stay, and it runs as in evaluation; the other modules learn."""
        self.frozen = True
        self.block.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Component:
        """Set the mode of all modules, but for a frozen block's."""
        super().train(mode)
        if self.frozen:
            self.block.eval()
        return self

    def trained_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that are trained, by their learning rate, as `Objective.parameter_groups`; without empty groups."""
        fixed = {id(parameter) for parameter in self.block.parameters()} if self.frozen else set()
        groups = self.objective.parameter_groups(self)
        trained = {rate: [each for each in of_group if id(each) not in fixed] for rate, of_group in groups.items()}
        return {rate: of_group for rate, of_group in trained.items() if of_group}

    def activate(self, tensors: Tensors, beside: Tensors | None = None) -> Tensors:
        """Run the block on the named tensors that enter the component; returns those that leave the block, (N, ...) each.

        Args:
            beside: what enters beside them in training; None to predict.
        """
        tensors = self.objective.enter(self, unpack(tensors, self.handover), beside)
        output = call(self.block, tensors)
        names = gives(self.block)
        return {**tensors, **dict(zip(names, output if isinstance(output, tuple) else (output,), strict=True))}

    def forward(self, batch: Microbatch, *feedback: Tensors) -> tuple[Microbatch, tuple[Tensor, ...]]:
        """The micro-batch that leaves the component, without graph, and its losses, scalars with graph.

        `feedback` is what was kept and heard of an earlier micro-batch, for `WithFeedback.learn`."""
        tensors, beside, losses = self.compute(batch.tensors, batch.beside, *feedback)
        return Microbatch(self.hand_over(tensors), {name: canonical(tensor) for name, tensor in beside.items()}), losses

    def hand_over(self, leaving: Tensors) -> Tensors:
        """What leaves the block, without graph, in the precision and memory layout in which the next component gets it."""
        with torch.no_grad():
            return {name: canonical(tensor) for name, tensor in pack(leaving, self.handover).items()}

    def compute(self, tensors: Tensors, beside: Tensors, *feedback: Tensors) -> tuple[Tensors, Tensors, tuple[Tensor, ...]]:
        """The arithmetic of `forward`, which torch.compile may replace."""
        leaving = self.activate(tensors, beside)
        beside, losses = self.objective.learn(self, leaving, beside, *feedback)
        return leaving, beside, losses

    @torch.no_grad()
    def evaluate(self, tensors: Tensors) -> tuple[Tensors, Tensor]:
        """The tensors that leave the component, and the prediction of its exit before decoding."""
        leaving = self.activate(tensors)
        output = self.read_exit(leaving)
        return self.hand_over(leaving), canonical(output)

    def read_exit(self, leaving: Tensors) -> Tensor:
        """The prediction of the component's exit before decoding, from what leaves its block, in memory of its own."""
        output = self.objective.exit(self, leaving)
        shared = any(storage(output) == storage(tensor) for tensor in leaving.values())
        return output.clone() if shared else output  # the next block may modify its input in place

    def exit_parts(self) -> nn.ModuleDict:
        """The modules that decoding the exit of this component, or of any later one, needs."""
        return nn.ModuleDict({name: getattr(self, name) for name in self.objective.exit_parts})


def call(module: nn.Module, tensors: Tensors, takes: tuple[str, ...] = ("x",)) -> Tensor | tuple[Tensor, ...]:
    """Call a module with the tensors named by its attribute `takes`, or by the argument `takes` if it has none."""
    names = getattr(module, "takes", takes)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise KeyError(f"{type(module).__name__} takes {missing[0]!r}, but only {sorted(tensors)} reach it")
    return module(*(tensors[name] for name in names))


def takes(module: nn.Module) -> tuple[str, ...]:
    """The names of the tensors that a block takes: its attribute `takes`, or ("x",) if it has none."""
    return getattr(module, "takes", ("x",))


def gives(module: nn.Module) -> tuple[str, ...]:
    """The names of the tensors that a block gives: its attribute `gives`, or ("x",) if it has none."""
    return getattr(module, "gives", ("x",))


def canonical(tensor: Tensor) -> Tensor:
    """The tensor without its graph, in the memory layout that it would have on arrival from another process.

    A kernel may round differently for a strided view or a misaligned start. With this function a component sees the same
    layout in both engines.
    """
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.storage_offset() or tensor.data_ptr() % ALIGNMENT else tensor


def storage(tensor: Tensor) -> int:
    """The address of a tensor's storage, which is equal for tensors that share memory."""
    return tensor.untyped_storage().data_ptr()


def as_tensors(inputs: Tensor | Tensors) -> Tensors:
    """A network's input as named tensors; a single tensor is named "x"."""
    return {"x": inputs} if isinstance(inputs, torch.Tensor) else dict(inputs)
