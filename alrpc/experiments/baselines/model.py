"""The blocks and a head, end to end; and a part of them as one module of positional tensors, for a pipeline's stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alrpc.config import Config
from alrpc.data.dataset import WordVectors
from alrpc.models import build_parts
from alrpc.models.pooling import Pooled, choose_pool
from alrpc.network import load_word_vectors
from alrpc.objectives.base import Target, Tensors, as_tensors, call, gives
from alrpc.objectives.build import run_sample, trace_blocks


@dataclass(frozen=True)
class SequentialModel:
    """Blocks and, last, their head. `takes[i]` are the tensors that layer i is called with, `types[i]` those that reach it."""

    layers: list[nn.Module]
    takes: list[tuple[str, ...]]
    types: list[dict[str, torch.dtype]]


def build_sequential_model(
    config: Config, sample: Tensors, target: Target, word_vectors: WordVectors | None = None
) -> SequentialModel:
    """The network that back-propagation trains; its blocks begin with the parameters that associated learning's begin with.

    The head is the model's own, else one linear layer after the pool that the last component's bridge would have.

    Raises:
        UserError: when the blocks or the head do not fit the data.
    """
    with torch.random.fork_rng(devices=[]):
        parts, make_head = build_parts(config.model.name, config.model.fields, config.train.seed)
        blocks = parts["blocks"]
        activations = trace_blocks(blocks, as_tensors(sample))
        last, name = activations[-1], gives(blocks[-1])[0]
        if make_head is not None:
            head = make_head(target.width)
        else:
            pool = parts.get("pools", [None])[-1] or choose_pool(last, name, config.objective.pooling)
            head = Pooled(pool, nn.LazyLinear(target.width))
        run_sample(head, last, "the head", (name,))
    if word_vectors is not None:
        load_word_vectors(blocks[0], word_vectors)
    takes = [getattr(block, "takes", ("x",)) for block in blocks] + [getattr(head, "takes", (name,))]
    types = [{name: tensor.dtype for name, tensor in tensors.items()} for tensors in (sample, *activations)]
    return SequentialModel([*blocks, head], takes, types)


class ModelPart(nn.Module):
    """Consecutive layers of a model, as a function of the tensors that reach them and are still needed, by position.

    Between two parts everything travels as float32 and has a gradient (zero where nothing was learned from it), since
    pipeline engines send a gradient back for each tensor that they sent.
    """

    def __init__(self, model: SequentialModel, numbers: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(model.layers[number] for number in numbers)
        self.calls = [model.takes[number] for number in numbers]
        self.takes = _needed(model, numbers[0])
        self.is_last = numbers[-1] == len(model.layers) - 1
        self.gives = () if self.is_last else _needed(model, numbers[-1] + 1)
        self.types = model.types[numbers[0]]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        for tensor in inputs:
            if tensor.requires_grad:  # its gradient is sent as it lies in memory
                tensor.register_hook(Tensor.contiguous)
        tensors = {
            name: tensor if tensor.dtype == self.types[name] else tensor.to(self.types[name])
            for name, tensor in zip(self.takes, inputs, strict=True)
        }
        for layer, takes in zip(self.layers, self.calls, strict=True):
            output = call(layer, tensors, takes)
            tensors.update(zip(gives(layer), output if isinstance(output, tuple) else (output,), strict=True))
        if self.is_last:
            return output
        return _Tied.apply(*(tensors[name].float().contiguous() for name in self.gives))


class _Tied(torch.autograd.Function):
    """Passes tensors on so that each of them has a gradient if one of them has."""

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(True)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def _needed(model: SequentialModel, start: int) -> tuple[str, ...]:
    """The names that layers start, start + 1, … take from before, sorted."""
    needed: set[str] = set()
    for layer, takes in zip(reversed(model.layers[start:]), reversed(model.takes[start:]), strict=True):
        needed = (needed - set(gives(layer))) | set(takes)
    return tuple(sorted(needed))
