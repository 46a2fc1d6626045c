"""The exits of a network as one plain module, and as a graph of torch.export."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from alrpc.errors import UserError, error_line
from alrpc.network import Network
from alrpc.objectives.handover import pack

LSTM, COMPOSED = torch.ops.aten.lstm.input, torch._C.DispatchKey.CompositeImplicitAutograd


class Exits(nn.Module):
    """One exit of a network, or all of them, with copies of those modules alone that predict, in evaluation mode.

    It takes the network's tensors in order, (N, ...) each, and gives for classes and labels their scores and their probabilities,
    (N, classes) each, for a regression the values, (N, width); of all L exits these are stacked: (N, L, classes) or (N, L, width).

    Args:
        names: of the network's tensors.
        exit: the number of the exit; None for all of them.
    """

    def __init__(self, network: Network, names: Sequence[str], exit: int | None):
        super().__init__()
        self.components = nn.ModuleList(copy.deepcopy(component) for component in network.components[:exit])
        for component in self.components:
            unused = component.objective.training_only(component, exit is None or component.number == exit)
            for name in [name for name, part in component.named_children() if any(part is each for each in unused)]:
                delattr(component, name)
        self.objective, self.names, self.are_all = network.objective, tuple(names), exit is None
        self.gives = ("scores", "probabilities") if network.target.named else ("values",)
        self.requires_grad_(False).eval()
        for tensor in self.parameters():
            tensor.data = tensor.data.contiguous()  # whatever the layout of the training

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        tensors, parts, own, decoded = dict(zip(self.names, inputs, strict=True)), [], [], []
        for component in self.components:
            tensors = component.activate(tensors)
            parts.append(component.exit_parts())
            is_last = component is self.components[-1]
            if self.are_all or self.objective.combines_exits or is_last:
                output = self.objective.exit(component, tensors)
                own.append(output if is_last else output.clone())  # the next block may modify its input in place
            if self.are_all or is_last:
                decoded.append(self.objective.decode(parts, own))
            tensors = pack(tensors, component.handover)
        given = [decoded]
        if "probabilities" in self.gives:
            given.append([self.objective.probabilities(output) for output in decoded])
        return tuple(torch.stack(outputs, dim=1) if self.are_all else outputs[0] for outputs in given)


def _lstm_shapes(x: Tensor, state: Sequence[Tensor], *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What an LSTM gives, as shapes alone. While a graph is made torch finds them by unrolling the LSTM, which fixes the length."""
    *_, is_bidirectional, _ = options
    output = x.new_empty(*x.shape[:2], state[0].shape[2] * (2 if is_bidirectional else 1))
    return output, torch.empty_like(state[0]), torch.empty_like(state[1])


@contextmanager
def tracing() -> Iterator[None]:
    """The settings in which torch.export can follow this package's networks; the caller's are restored at the end."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its operation for a whole encoder layer has no graph
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            for table, key in ((LSTM.py_kernels, COMPOSED), (torch._decomp.decomposition_table, LSTM)):
                stack.enter_context(patch.dict(table, {key: _lstm_shapes}))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def trace(exits: Exits, sample: Sequence[Tensor], free: Sequence[Sequence[int]]) -> ExportedProgram:
    """The graph of the exits.

    Args:
        sample: a micro-batch of two samples or more for each input.
        free: for each input its dimensions that may have any size, if the network allows it; the first one has to.

    Raises:
        UserError: for a network of which torch.export makes no graph for any number of samples.
    """
    sizes = [dict.fromkeys(dimensions, Dim.AUTO) for dimensions in free]
    try:
        with tracing():
            program = torch.export.export(exits, tuple(sample), dynamic_shapes={"inputs": tuple(sizes)}, strict=False)
    except Exception as error:  # of the network's own code, or of torch.export's
        raise UserError(f"the network cannot be exported: torch.export makes no graph of it: {error_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which would be saved
    if any(shape[0] is not None for shape in shapes_of(program)):
        raise UserError(
            f"the network cannot be exported: in its graph a micro-batch has {len(sample[0])} samples, no more and no less; its code may "
            "take the number as len(x), where x.shape[0] is right"
        )
    return program


def shapes_of(program: ExportedProgram) -> list[tuple[int | None, ...]]:
    """The shape of each input of a graph; None for a size that is free."""
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [[str(size) for size in nodes[name].meta["val"].shape] for name in names]
    return [
        tuple(int(size) if size.isdigit() else None for size in shape) for shape in shapes
    ]  # a symbol may be known to be a number
