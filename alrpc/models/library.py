"""Networks of torchvision and of timm, traced and cut into blocks; their classifier is the head that back-propagation trains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from alrpc.config.own_code import did_you_mean
from alrpc.errors import UsageError
from alrpc.models.graph import Graph
from alrpc.models.parts import Parts

BLOCKS = 4  # unless a number or the places are given
Count = Annotated[int, Field(ge=1)]
Places = Annotated[list[str], Field(min_length=1)]


def build_traced(
    name: str, sample: Tensor | None, /, components: Count | None = None, cut: Places | None = None, **fields: Any
) -> Parts:
    """Build a network of torchvision or of timm and cut it before its classifier, and into blocks.

    Args:
        name: torchvision:NAME or timm:NAME.
        sample: a micro-batch, (N, ...), by which the costs of blocks are compared; None for their parameters alone.
        components: number of blocks, of similar cost; null for 4, or as many as the network can be cut into.
        cut: instead: names of the modules with which the second and each later block begins, in order.
        fields: arguments of the network's own function.

    Raises:
        UsageError: for an unknown name, places where the network cannot be cut, or places beside a number of blocks.
        UserError: for a network that cannot be cut.
    """
    check_one(components, cut)
    graph = Graph(_make(name, fields), f"model.name: {name}")
    end = head_position(graph)
    possible = graph.positions(end)
    if cut is not None:
        blocks = graph.parts(_find_places(graph, name, cut, end), end)
    else:
        count = check_count(name, components, len(possible) + 1)
        blocks = graph.parts_of_similar_cost(count, possible, end, sample)
    classifier = graph.part(end, len(graph.steps))
    return Parts(blocks, head=lambda width: with_width(classifier, width), whole=graph.model)


def check_one(components: int | None, cut: Sequence[str] | None) -> None:
    """Refuse, with a UsageError, both a number of blocks and the places where they begin."""
    if components is not None and cut is not None:
        raise UsageError(
            f"model.components: got {components} beside model.cut, which says where the blocks begin; give one of them"
        )


def check_count(name: str, components: int | None, most: int) -> int:
    """The number of blocks that was asked for, or the default; raises UsageError if a network of this name cannot have so many."""
    count = min(BLOCKS, most) if components is None else components
    if count > most:
        raise UsageError(f"model.components: got {count}, but {name} can be cut into {most} blocks at most; use 1 to {most}")
    return count


def _make(name: str, fields: dict[str, Any]) -> nn.Module:
    library, _, network = name.partition(":")
    if library == "torchvision":
        from torchvision.models import get_model_builder, list_models

        _check_network(name, network, list_models())
        builder = get_model_builder(network)
        unloaded = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
        return builder(**unloaded, **fields)
    from timm import create_model, is_model, list_models

    if not is_model(network) or ":" in network:
        _check_network(name, network, list_models())
    return create_model(network, pretrained=False, **fields)


def _check_network(name: str, network: str, known: Sequence[str]) -> None:
    if network not in known:
        library = name.partition(":")[0]
        near = did_you_mean(network, known)
        raise UsageError(f"model.name: {library} has no network {network!r}{near}; {library}.list_models() has their names")


def head_position(graph: Graph) -> int:
    """Where the classifier begins: the last child of the model with weights, and what has no parameters before it.

    Raises:
        UsageError: for a network that has nothing else.
    """
    last = graph.steps[graph.heavy[-1]].target.partition(".")[0] if graph.heavy else ""
    begin = next((i for i in graph.heavy if graph.steps[i].target.partition(".")[0] == last), 0)
    lowest = next((index + 1 for index in range(begin - 1, -1, -1) if graph.tensors[index]), 0)
    found = next((position for position in range(lowest, begin + 1) if position and graph.obstacle(position) is None), None)
    if found is None:
        raise UsageError(f"{graph.who} cannot be cut: nothing with weights comes before its classifier, {last!r}")
    return found


def _find_places(graph: Graph, name: str, cut: Sequence[str], end: int) -> list[int]:
    """The positions at which the named modules begin."""
    found: list[int] = []
    for place in cut:
        position = graph.find(place)
        if position is None:
            near = did_you_mean(place, [module for module, _ in graph.model.named_modules()])
            raise UsageError(
                f"model.cut: {name} runs no module {place!r}{near}; give names of its modules, such as its children"
            )
        obstacle = graph.obstacle(position)
        if position == 0:
            obstacle = "it is the first module"
        elif position >= end:
            obstacle = "it is of the classifier, which is no block"
        elif found and position <= found[-1]:
            obstacle = "the modules must be in order, each once"
        if obstacle is not None:
            raise UsageError(f"model.cut: {name} cannot be cut before {place}: {obstacle}")
        found.append(position)
    return found


def with_width(classifier: nn.Module, width: int) -> nn.Module:
    """A classifier whose last layer gives `width` scores: the classifier itself if it does, else with a new last layer."""
    makers: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        nn.Linear: lambda old: nn.Linear(old.in_features, width, old.bias is not None),
        nn.Conv2d: lambda old: nn.Conv2d(
            old.in_channels, width, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
        ),
    }
    layers = [(name, layer) for name, layer in classifier.named_modules() if type(layer) in makers]
    if not layers:
        raise UsageError("model.name: its classifier has no linear layer; back-propagation has nothing to train there")
    name, last = layers[-1]
    if (last.out_features if isinstance(last, nn.Linear) else last.out_channels) != width:
        classifier.set_submodule(name, makers[type(last)](last))
    return classifier
