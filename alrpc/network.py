"""Components in order, predicted from by any exit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from alrpc.component import Component, Target, Tensors, as_tensors, decode
from alrpc.timing import peak_memory


class Network(nn.Module):
    """L components and the kind of target they learn. `components[l - 1]` is component l."""

    def __init__(self, components: Iterable[Component], target: Target):
        super().__init__()
        self.components = nn.ModuleList(components)
        self.target = target

    def forward(self, inputs: Tensor | Tensors, exit: int | None = None) -> Tensor:
        """The output of an exit, in the space of the labels: (N, classes) scores or (N, width) values.

        Args:
            inputs: (N, ...) as the sample given to `associate`, or named tensors.
            exit: l for the prediction after l components; None for the full path (l = L).
        """
        depth = len(self.components) if exit is None else exit
        if not 1 <= depth <= len(self.components):
            raise ValueError(f"exit: got {exit}, but the network has exits 1 to {len(self.components)}")
        tensors = as_tensors(inputs)
        for component in self.components[:depth]:
            tensors = component.activate(tensors)
        bridged = self.components[depth - 1].associate(tensors)
        return decode([component.decoder for component in self.components[:depth]], bridged)

    @torch.no_grad()
    def predict(self, inputs: Tensor | Tensors, exit: int | None = None) -> Tensor:
        """The class index, (N,), or the values, (N, width), that an exit predicts; in evaluation mode, on the inputs' device."""
        tensors = as_tensors(inputs)
        device = next(iter(self.parameters())).device
        with evaluating(self):
            output = self({name: tensor.to(device) for name, tensor in tensors.items()}, exit)
        return self.target.decide(output).to(next(iter(tensors.values())).device)

    def count_parameters(self) -> dict[str, int]:
        """`effective`: what the full path's prediction uses (all f, all h, b_L); `affiliated`: what only training uses."""
        return count_parameters(self.components, has_last=True)

    def digest(self) -> str:
        """SHA-256 over every parameter and buffer of every component, in order."""
        return combine_digests(component_digest(component) for component in self.components)


def count_parameters(components: Sequence[Component], has_last: bool) -> dict[str, int]:
    """Effective and affiliated parameters of consecutive components; b is effective in the network's last one only."""
    affiliated = [component.encoder for component in components]
    affiliated += [component.bridge for component in (components[:-1] if has_last else components)]
    needless = sum(p.numel() for module in affiliated for p in module.parameters())
    return {"effective": sum(p.numel() for c in components for p in c.parameters()) - needless, "affiliated": needless}


def describe_components(components: Sequence[Component], has_last: bool, device: torch.device) -> dict:
    """What a process says of its trained components at the end: digests, parameter counts, peak memory in bytes."""
    return {
        "digests": [component_digest(component) for component in components],
        "parameters": count_parameters(components, has_last),
        "peak_memory": peak_memory(device),
    }


def component_digest(component: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a component's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in component.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def combine_digests(digests: Iterable[str]) -> str:
    """The network's digest from its components', so that no process needs all the parameters."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@contextmanager
def evaluating(module: nn.Module):
    """Evaluation mode inside, each submodule's own mode again after."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
