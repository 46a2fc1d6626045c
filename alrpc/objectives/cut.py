"""Cut a model whose children run one after another into blocks of similar cost."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from alrpc.errors import UserError
from alrpc.objectives.base import Tensors
from alrpc.objectives.build import check_sample, run_sample


def cut(model: nn.Module, n: int, sample: Tensor | Tensors | None = None) -> list[nn.Sequential]:
    """Cut a model into `n` consecutive blocks of similar cost, the blocks of `alrpc.associate`.

    It is cut between its children, and between those of every `nn.Sequential` among them. A block begins at a child with
    weights (a parameter of two dimensions or more); norms, activations, pools and the like stay with the child before them. Of
    all such cuts the result is one whose most expensive block is cheapest.

    Args:
        model: an `nn.Sequential`; or, with a sample, another module that calls its children one after another in the order of
            their names, which is checked.
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
    children = list(_children(model))
    if type(model).forward is not nn.Sequential.forward:
        _check_order(model, children, x)
    groups = _group(children)
    if not groups:
        raise UserError("model: none of its children has weights (a parameter of two dimensions or more)")
    count = _whole_number(n)
    if not 1 <= count <= len(groups):
        raise UserError(f"n: got {n!r}; the model has {len(groups)} children with weights, use 1 to {len(groups)}")
    costs = _costs(groups, x)
    blocks, first = [], 0
    for size in split_consecutive(costs, count):
        blocks.append(nn.Sequential(*(child for group in groups[first : first + size] for child in group)))
        first += size
    return blocks


def split_consecutive(
    costs: Sequence[float], parts: int, allowed: Callable[[int, int], bool] = lambda first, end: True
) -> list[int]:
    """Split costs into consecutive parts of which the most expensive is cheapest, by dynamic programming over the first cost of the
    last part.

    Args:
        allowed: whether costs first … end - 1 (from 0) may be one part.

    Returns:
        The number of costs in each part; an empty list if no split is allowed.
    """
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # For each number of parts and each end: the largest part, the sum of squares, which settles ties, and the first of the last part.
    best: list[dict[int, tuple[float, float, int]]] = [{0: (0.0, 0.0, 0)}]
    for part in range(1, parts + 1):
        best.append({})
        for end in range(part, len(costs) + 1):
            candidates = [
                (max(largest, before[end] - before[first]), squares + (before[end] - before[first]) ** 2, first)
                for first, (largest, squares, _) in best[part - 1].items()
                if first < end and allowed(first, end)
            ]
            if candidates:
                best[part][end] = min(candidates)
    sizes: list[int] = []
    end = len(costs)
    for part in range(parts, 0, -1):
        if end not in best[part]:
            return []
        first = best[part][end][2]
        sizes.insert(0, end - first)
        end = first
    return sizes


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
    return any(is_lazy(parameter) or parameter.ndim >= 2 for parameter in module.parameters())


def _costs(groups: Sequence[Sequence[nn.Module]], x: Tensor | None) -> list[float]:
    costs = []
    for number, group in enumerate(groups, 1):
        operations = 0
        if x is not None:
            with FlopCounterMode(display=False) as counter:
                x = run_sample(nn.Sequential(*group), {"x": x}, f"group {number} of the model's children")
            operations = counter.get_total_flops()
        parameters = [parameter for child in group for parameter in child.parameters()]
        if any(map(is_lazy, parameters)):
            raise UserError("model: has lazy modules, whose sizes are not known yet; give cut a sample")
        costs.append(operations + sum(parameter.numel() for parameter in parameters))
    return costs


@torch.no_grad()
def _check_order(model: nn.Module, children: Sequence[nn.Module], x: Tensor | None) -> None:
    """Check that a model computes what its children do one after another, in evaluation and in training, with copies of them."""
    name = type(model).__name__
    if x is None:
        raise UserError(f"model: got {name}; give an nn.Sequential, or a sample, to check that it runs its children in order")
    x = torch.cat([x, x])  # batch norm needs two samples in training
    for training in (False, True):
        outputs = []
        for module in (model, nn.Sequential(*children)):
            with torch.random.fork_rng(devices=[x.device.index] if x.is_cuda else []):
                torch.manual_seed(0)
                try:
                    outputs.append(copy.deepcopy(module).train(training)(x))
                except Exception as error:  # of the model's own code
                    raise UserError(
                        f"model: {name}, or its children one after another, fail on {tuple(x.shape)}: {' '.join(str(error).split())}; "
                        "give an nn.Sequential of what it runs"
                    ) from error
        if not all(isinstance(output, Tensor) for output in outputs) or not torch.equal(*outputs):
            raise UserError(f"model: {name} does more than to run its children in order; give an nn.Sequential of what it runs")


def _whole_number(n: object) -> int:
    try:
        return operator.index(n)
    except TypeError:
        return 0
