"""The network that back-propagation trains: blocks and a head; and a part of it as one module, for a pipeline's stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alrpc.config import Config
from alrpc.data.dataset import WordVectors
from alrpc.models.build import build_parts
from alrpc.models.pooling import Pooled, choose_pool
from alrpc.network import begin_parts
from alrpc.objectives.base import Tensors, as_tensors, call, gives
from alrpc.objectives.build import run_sample, trace_blocks
from alrpc.objectives.targets import Target


@dataclass(frozen=True)
class SequentialModel:
    """Blocks followed by their head.

    `takes[i]` names the tensors that layer i is called with, `types[i]` gives the types of those that reach it.
    """

    layers: list[nn.Module]
    takes: list[tuple[str, ...]]
    types: list[dict[str, torch.dtype]]


def build_sequential_model(
    config: Config, sample: Tensors, target: Target, word_vectors: WordVectors | None = None
) -> SequentialModel:
    """Build the network; its blocks start with the same parameters as under a local objective.

    The head is the model's own, or else one linear layer after the pool that the last component's bridge would have.

    Raises:
        UserError: when the blocks or the head do not fit the data.
    """
    with torch.random.fork_rng(devices=[]):
        parts = build_parts(config.model, config.train.seed, sample)
        blocks = parts.blocks
        activations = trace_blocks(blocks, as_tensors(sample))
        last, name = activations[-1], gives(blocks[-1])[0]
        if parts.head is not None:
            head = parts.head(target.width)
        else:
            pool = parts.own.get("pools", [None])[-1] or choose_pool(last, name, getattr(config.objective, "pooling", "auto"))
            head = Pooled(pool, nn.LazyLinear(target.width))
        run_sample(head, last, "the head", (name,))
    begin_parts(parts, config, word_vectors)
    takes = [getattr(block, "takes", ("x",)) for block in blocks] + [getattr(head, "takes", (name,))]
    types = [{name: tensor.dtype for name, tensor in tensors.items()} for tensors in (sample, *activations)]
    return SequentialModel([*blocks, head], takes, types)


class ModelPart(nn.Module):
    """Consecutive layers of a model as one module, called with the tensors that it or a later part needs, by position.

    Between two parts all tensors travel as float32 and have a gradient (zero where the loss does not depend on them), because
    pipeline engines send back a gradient for each tensor that they sent.
    """

    def __init__(self, model: SequentialModel, numbers: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(model.layers[number] for number in numbers)
        self.calls = [model.takes[number] for number in numbers]
        self.takes = _needed(model, numbers[0])
        self.is_first = numbers[0] == 0
        self.is_last = numbers[-1] == len(model.layers) - 1
        self.gives = () if self.is_last else _needed(model, numbers[-1] + 1)
        self.types = model.types[numbers[0]]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        for tensor in inputs:
            if tensor.requires_grad:  # pipeline engines send the gradient's memory as it lies
                tensor.register_hook(Tensor.contiguous)
        tensors = {
            name: tensor if tensor.dtype == self.types[name] else tensor.to(self.types[name])
            for name, tensor in zip(self.takes, inputs, strict=True)
        }
        for layer, takes in zip(self.layers, self.calls, strict=True):
            output = call(layer, tensors, takes)
            tensors.update(zip(gives(layer), output if isinstance(output, tuple) else (output,), strict=True))
        if self.is_last:
            return output.float()
        return _Tied.apply(*(tensors[name].float().contiguous() for name in self.gives))


class _Tied(torch.autograd.Function):
    """Passes tensors through so that each has a gradient if any of them has one."""

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(True)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def _needed(model: SequentialModel, start: int) -> tuple[str, ...]:
    """The names, sorted, of the tensors that layers start, start + 1, … take from earlier layers."""
    needed: set[str] = set()
    for layer, takes in zip(reversed(model.layers[start:]), reversed(model.takes[start:]), strict=True):
        needed = (needed - set(gives(layer))) | set(takes)
    return tuple(sorted(needed))
