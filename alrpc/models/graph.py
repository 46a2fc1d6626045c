"""Cut a model into consecutive blocks by its graph, as torch.fx traces it: where a single tensor passes from one to the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from alrpc.errors import UserError, error_line
from alrpc.models.modes import eval_mode


class Graph:
    """What a model does between its input and its output, as a list of steps: calls of its modules, and functions between them.

    A position p is the place before step p. The model can be cut there if one tensor alone passes it, and no parameter or buffer is
    used on both sides.

    Args:
        model: called with one tensor. Each nn.Sequential, and each module with one or with an nn.ModuleList among its children, is
            gone into; all others are one step each.
        who: names the model in messages.

    Raises:
        UserError: for a model that torch.fx cannot trace, that does other things in training than in evaluation, or that draws
            random numbers of its own.
    """

    def __init__(self, model: nn.Module, who: str):
        self.model, self.who = model, who
        graph = _trace(model, who)
        self.entering, *self.steps, output = graph.nodes
        self.leaving = output.args[0]
        if not isinstance(self.leaving, fx.Node):
            raise UserError(f"{who} cannot be cut: it gives several tensors; it must give one")
        place = {node: index for index, node in enumerate(self.steps)}
        self._lives = [  # each value, with the steps that make it and that use it last
            (node, place.get(node, -1), max(place.get(user, len(self.steps)) for user in node.users))
            for node in (self.entering, *self.steps)
            if node.users
        ]

    @cached_property
    def tensors(self) -> list[dict[str, Tensor]]:
        """The parameters and buffers of each step, by name."""
        found: list[dict[str, Tensor]] = []
        for node in self.steps:
            if node.op == "get_attr":
                owner, _, name = node.target.rpartition(".")
                found.append({node.target: getattr(self.model.get_submodule(owner), name)})
            elif node.op == "call_module":
                module = self.model.get_submodule(node.target)
                both = itertools.chain(module.named_parameters(), module.named_buffers())
                found.append({f"{node.target}.{name}": tensor for name, tensor in both})
            else:
                found.append({})
        return found

    @cached_property
    def heavy(self) -> list[int]:
        """The steps with weights: a parameter of two dimensions or more."""
        return [index for index, tensors in enumerate(self.tensors) if any(map(is_weight, tensors.values()))]

    def crossing(self, position: int) -> list[fx.Node]:
        """The values that are made before a position and used after it."""
        return [node for node, made, used in self._lives if made < position <= used]

    def obstacle(self, position: int) -> str | None:
        """Why the model cannot be cut at a position; None if it can."""
        values = self.crossing(position)
        if len(values) != 1:
            return f"{len(values)} values pass there ({', '.join(map(str, values))}), and only one may"
        tied = next(((first, last) for first, last in self._tied if first[0] < position <= last[0]), None)
        if tied is not None:
            (_, first), (_, last) = tied
            return (
                f"{first} is used on both sides" if first == last else f"{first} and {last}, on the two sides, are one tensor"
            )
        return None

    @cached_property
    def _tied(self) -> list[tuple[tuple[int, str], tuple[int, str]]]:
        """The first and the last step, and the names there, of each parameter or buffer that several steps use."""
        uses: dict[int, list[tuple[int, str]]] = {}
        for index, tensors in enumerate(self.tensors):
            for name, tensor in tensors.items():
                uses.setdefault(id(tensor), []).append((index, name))
        return [(of_one[0], of_one[-1]) for of_one in uses.values() if of_one[0][0] != of_one[-1][0]]

    def positions(self, end: int) -> list[int]:
        """Among the steps before `end`, the last position between each two steps with weights where the model can be cut."""
        heavy = [index for index in self.heavy if index < end]
        found = []
        for before, after in itertools.pairwise(heavy):
            for position in range(after, before, -1):
                if self.obstacle(position) is None:
                    found.append(position)
                    break
        return found

    def find(self, name: str) -> int | None:
        """The position at which a module or a parameter is used first; None if it never is."""
        owned = (index for index, node in enumerate(self.steps) if f"{node.target}.".startswith(f"{name}."))
        return next((index for index in owned if self.steps[index].op in ("call_module", "get_attr")), None)

    def part(self, first: int, end: int) -> fx.GraphModule:
        """Steps first … end - 1 as a module, which holds the model's own modules under their own names."""
        graph = fx.Graph()
        copies = {self.entering if first == 0 else self.crossing(first)[0]: graph.placeholder("x")}
        for node in self.steps[first:end]:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[self.leaving if end == len(self.steps) else self.crossing(end)[0]])
        return fx.GraphModule(self.model, graph, type(self.model).__name__)

    def parts(self, positions: Sequence[int], end: int) -> list[fx.GraphModule]:
        """The steps before `end`, cut at these positions."""
        return [self.part(*ends) for ends in itertools.pairwise([0, *positions, end])]

    def parts_of_similar_cost(self, count: int, positions: Sequence[int], end: int, x: Tensor | None) -> list[fx.GraphModule]:
        """The steps before `end`, cut at so many of these positions that there are `count` parts, the most expensive of which is
        cheapest; see `costs`."""
        begins = [0, *positions]
        slices = split_evenly(costs(self.parts(positions, end), x, self.who), count)
        return self.parts([begins[part.start] for part in slices][1:], end)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        has_list = any(isinstance(child, nn.Sequential | nn.ModuleList) for child in module.children())
        is_chain = type(module).forward is nn.Sequential.forward
        return super().is_leaf_module(module, name) or not (has_list or is_chain)

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: object = None) -> tuple[Callable, list]:
        """One tensor; the other arguments have their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]


def _trace(model: nn.Module, who: str) -> fx.Graph:
    graphs, random = [], torch.get_rng_state()
    with eval_mode(model):
        for training in (True, False):
            model.train(training)
            try:
                graphs.append(_Tracer().trace(model))
            except Exception as error:  # of the model's own code, mostly
                raise UserError(
                    f"{who} cannot be cut: its forward is no chain that torch.fx can trace: {error_line(error)}"
                ) from error
    if not torch.equal(random, torch.get_rng_state()):
        torch.set_rng_state(random)
        raise UserError(f"{who} cannot be cut: its forward draws random numbers outside its modules")
    for steps in itertools.zip_longest(*(graph.nodes for graph in graphs)):
        if len({node and node.format_node() for node in steps}) > 1:
            raise UserError(
                f"{who} cannot be cut: it does other things in training than in evaluation, from {steps[0] or steps[1]} on"
            )
    return graphs[0]


def is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and (is_lazy(tensor) or tensor.ndim >= 2)


@torch.no_grad()
def costs(groups: Sequence[nn.Module], x: Tensor | None, who: str = "the model's children") -> list[float]:
    """The cost of modules that run one after another: the floating-point operations of the forward pass plus the parameters.

    Args:
        x: a sample, (N, ...); None for the parameters alone.

    Raises:
        UserError: naming the group that fails on the sample.
    """
    found = []
    for number, group in enumerate(groups, 1):
        operations = 0
        if x is not None:
            try:
                with FlopCounterMode(display=False) as counter, eval_mode(group):
                    after = group(x)
            except Exception as error:  # of the model's own code
                raise UserError(
                    f"group {number} of {who} ({type(group).__name__}) fails on x {tuple(x.shape)}: {error_line(error)}"
                ) from error
            operations, x = counter.get_total_flops(), after
        parameters = list(group.parameters())
        if any(map(is_lazy, parameters)):
            raise UserError("model: has lazy modules, whose sizes are not known yet; give cut a sample")
        found.append(operations + sum(parameter.numel() for parameter in parameters))
    return found


def split_evenly(costs: Sequence[float], parts: int) -> Iterator[slice]:
    """Consecutive parts of a list of which the most expensive is cheapest, as slices."""
    end = 0
    for size in split_consecutive(costs, parts):
        yield slice(end, end + size)
        end += size


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
