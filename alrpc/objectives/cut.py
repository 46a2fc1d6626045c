"""Cut a model whose children run one after another, or that torch.fx can trace, into blocks of similar cost."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from alrpc.errors import UserError
from alrpc.models.graph import Graph, costs, is_weight, split_evenly
from alrpc.objectives.base import Tensors
from alrpc.objectives.build import check_sample


def cut(model: nn.Module, n: int, sample: Tensor | Tensors | None = None) -> list[nn.Module]:
    """Cut a model into `n` consecutive blocks of similar cost, the blocks of `alrpc.associate`.

    An `nn.Sequential`, and a model that calls its children one after another in the order of their names, is cut between its
    children, and between those of every `nn.Sequential` among them. Any other model is traced by torch.fx, and cut where one tensor
    alone passes. A block begins at a child with weights (a parameter of two dimensions or more); norms, activations, pools and the
    like stay with the child before them. Of all such cuts the result is one whose most expensive block is cheapest.

    Args:
        model: a module that is called with one tensor and gives one.
        sample: a micro-batch, (N, ...), or named tensors with "x", as `Dataset.sample`. With it the cost of a child is the
            floating-point operations of its forward pass plus its parameters; without it, its parameters alone. Lazy modules
            need it. A sample of the same shape gives the same cut, on every machine.

    Returns:
        The blocks, which hold the model's own modules: one after another they compute what the model does.

    Raises:
        UserError: when the model cannot be cut like this, or into so many blocks.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: got {type(model).__name__}; give an nn.Sequential")
    x = None if sample is None else check_sample(sample, "sample").get("x")
    if sample is not None and x is None:
        raise UserError("sample: has no tensor 'x', which a model that is cut takes; give a tensor")
    if type(model).forward is nn.Sequential.forward or (x is not None and _runs_in_order(model, x)):
        groups = [nn.Sequential(*group) for group in _group(list(_children(model)))]
        count = _check_count(n, len(groups), f"has {len(groups)} children with weights, use 1 to {len(groups)}")
        parts = [groups[part] for part in split_evenly(costs(groups, x), count)]
        return [nn.Sequential(*(child for group in part for child in group)) for part in parts]
    graph = Graph(model, f"model: {type(model).__name__}")
    end = len(graph.steps)
    positions = graph.positions(end)
    most = len(positions) + 1 if graph.heavy else 0
    count = _check_count(n, most, f"can be cut into 1 to {most} blocks, where one tensor passes")
    return graph.parts_of_similar_cost(count, positions, end, x)


def _check_count(n: object, most: int, why: str) -> int:
    """The number of blocks, if a model can be cut into so many."""
    if not most:
        raise UserError("model: none of its children has weights (a parameter of two dimensions or more)")
    try:
        count = operator.index(n)
    except TypeError:
        count = 0
    if not 1 <= count <= most:
        raise UserError(f"n: got {n!r}; the model {why}")
    return count


def _children(model: nn.Module) -> Iterator[nn.Module]:
    """The children in order; those of an nn.Sequential in its place. A module that occurs twice is given twice."""
    for child in model._modules.values():
        if type(child) is nn.Sequential:
            yield from _children(child)
        elif child is not None:
            yield child


def _group(children: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Groups of consecutive children, with one child with weights in each."""
    groups: list[list[nn.Module]] = [[]]
    for child in children:
        if _has_weights(child) and any(map(_has_weights, groups[-1])):
            groups.append([])
        groups[-1].append(child)
    return groups if any(map(_has_weights, groups[0])) else []


def _has_weights(module: nn.Module) -> bool:
    return any(map(is_weight, module.parameters()))


@torch.no_grad()
def _runs_in_order(model: nn.Module, x: Tensor) -> bool:
    """Whether a model computes what its children do one after another, in evaluation and in training; tried with copies of them."""
    x = torch.cat([x, x])  # batch norm needs two samples in training
    for training in (False, True):
        outputs = []
        for module in (model, nn.Sequential(*_children(model))):
            with torch.random.fork_rng(devices=[x.device.index] if x.is_cuda else []):
                torch.manual_seed(0)
                try:
                    outputs.append(copy.deepcopy(module).train(training)(x))
                except Exception:  # of the model's own code
                    return False
        if not all(isinstance(output, Tensor) for output in outputs) or not torch.equal(*outputs):
            return False
    return True
