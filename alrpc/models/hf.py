"""Networks of Hugging Face transformers, by their type and their configuration; the first block has the embedding, each has layers.

A block is the network itself with the layers of the other blocks passed over, called with what the block before it gives as its
embedded inputs, which is how vLLM and transformers place a network over devices. Positions and masks are so the network's own.
"""

from __future__ import annotations

import copy
import itertools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alrpc.config.own_code import did_you_mean
from alrpc.errors import UsageError, UserError, error_line
from alrpc.models.graph import split_evenly
from alrpc.models.library import Count, Places, check_count, check_one
from alrpc.models.modes import eval_mode
from alrpc.models.parts import Parts

UNNEEDED = ("model_type", "transformers_version", "architectures", "dtype", "auto_map")  # of a directory's configuration


class Skip(nn.Module):
    """In place of a layer, or of a norm after the layers, of another block."""

    def forward(self, hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return hidden


class SkipEmbedding(nn.Module):
    """In place of the embedding, in all blocks but the first."""

    def forward(self, *arguments: Any, inputs_embeds: Tensor | None = None, **options: Any) -> Tensor:
        return inputs_embeds if inputs_embeds is not None else arguments[-1]


class Part(nn.Module):
    """x, (N, T) tokens in the first block, else (N, T, width), and mask, (N, T), true for tokens -> x, (N, T, width)."""

    takes = ("x", "mask")

    def __init__(self, model: nn.Module, begins: bool):
        super().__init__()
        self.model = model
        self.given = "input_ids" if begins else "inputs_embeds"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.model(**{self.given: x}, attention_mask=mask).last_hidden_state


def build(
    name: str, sample: Tensor | None, /, components: Count | None = None, cut: Places | None = None, **fields: Any
) -> Parts:
    """Build a network without a classifier, with random parameters, and cut it between its layers.

    Args:
        name: hf:TYPE, such as hf:bert.
        sample: is not used: all layers of a network cost about the same.
        components: number of blocks, of similar cost; null for 4, or as many as there are layers.
        cut: instead: names of the layers with which the second and each later block begins, in order, such as [encoder.layer.2].
        fields: fields of the network's own configuration, such as hidden_size.

    Raises:
        UsageError: for an unknown type or field, places where the network cannot be cut, or places beside a number of blocks.
        UserError: for a network that cannot be cut.
    """
    from transformers import AutoModel

    check_one(components, cut)
    model = AutoModel.from_config(make_config(name, fields), trust_remote_code=False)
    stem, path, after = _find_layers(name, model)
    layers = list(model.get_submodule(path))
    if cut is not None:
        begins = _find_places(name, cut, [f"{path}.{index}" for index in range(len(layers))])
    else:
        costs = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
        begins = [part.start for part in split_evenly(costs, check_count(name, components, len(layers)))][1:]
    ends = [0, *begins, len(layers)]
    blocks: list[nn.Module] = [
        Part(_trimmed(name, model, stem, path, after, first, end), first == 0) for first, end in itertools.pairwise(ends)
    ]
    _check_equal(name, model, blocks)
    return Parts(blocks, whole=model)


def make_config(name: str, fields: dict[str, Any]) -> Any:
    """The configuration of a network of transformers; raises UsageError for an unknown type or field."""
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = name.partition(":")[2]
    if kind not in CONFIG_MAPPING:
        near = did_you_mean(kind, list(CONFIG_MAPPING))
        raise UsageError(f"model.name: transformers has no type {kind!r}{near}; give one such as hf:bert, or hf:./DIRECTORY")
    known = AutoConfig.for_model(kind)
    for field in fields:
        if not hasattr(known, field):
            raise UsageError(f"model.{field}: unknown field{did_you_mean(field, known.to_dict())} of {name}'s configuration")
    return AutoConfig.for_model(kind, **{**fields, **({"use_cache": False} if hasattr(known, "use_cache") else {})})


def from_directory(name: str, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """hf:DIRECTORY as hf:TYPE with the fields that its config.json gives, so that a run needs the directory no more; others unchanged.

    A directory has a separator in its path, such as hf:./bert, and no type has one.

    Raises:
        UsageError: for no directory, or one without a configuration that transformers knows.
    """
    given = name.partition(":")[2]
    directory = Path(given)
    if not {os.sep, os.altsep} & set(given):
        return name, fields
    if not directory.is_dir():
        raise UsageError(f"model.name: no directory {directory}; give one with a config.json, or a type such as hf:bert")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"model.name: {directory} has no config.json that transformers reads: {error_line(error)}") from error
    described = {"vocab_size": config.vocab_size, **config.to_diff_dict()}
    return f"hf:{config.model_type}", {**{key: described[key] for key in described if key not in UNNEEDED}, **fields}


def _find_layers(name: str, model: nn.Module) -> tuple[list[str], str, list[str]]:
    """The modules before the layers, the list of the layers, and the modules after them that are called with what they give.

    They are those of the configuration's `base_model_pp_plan`, where there is one.
    """
    plan = list(model.config.base_model_pp_plan or ())
    count = getattr(model.config, "num_hidden_layers", 0)
    lists = [path for path, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each) == count]
    if len(lists) != 1 or (plan and lists[0] not in plan):
        raise UserError(
            f"model.name: {name} cannot be cut: it has {len(lists)} lists of num_hidden_layers layers, and must have one"
        )
    if not plan:
        return ["embeddings"], lists[0], []
    index = plan.index(lists[0])
    return plan[:index], lists[0], plan[index + 1 :]


def _find_places(name: str, cut: list[str], layers: list[str]) -> list[int]:
    for place in cut:
        if place not in layers[1:]:
            raise UsageError(
                f"model.cut: got {place!r}{did_you_mean(place, layers[1:])}; {name} can be cut before {layers[1]} to {layers[-1]}"
            )
    found = [layers.index(place) for place in cut]
    if found != sorted(set(found)):
        raise UsageError(f"model.cut: got {', '.join(cut)}; the layers must be in order, each once")
    return found


def _trimmed(name: str, model: nn.Module, stem: list[str], path: str, after: list[str], first: int, end: int) -> nn.Module:
    """The network with layers first … end - 1, the stem only if they are the first, and what is after the layers if they are the last.

    It has the network's own modules; of the others, such as rotary positions, which have no parameters, it has copies.
    """
    trimmed = copy.copy(model)
    trimmed._modules = dict(model._modules)
    count = len(model.get_submodule(path))
    for child, module in model._modules.items():
        if child in stem:
            trimmed._modules[child] = module if first == 0 else SkipEmbedding()
        elif child in after:
            trimmed._modules[child] = module if end == count else Skip()
        elif child == "pooler":
            trimmed._modules[child] = None
        elif module is not None and child != path.partition(".")[0]:
            if next(module.parameters(), None) is not None:
                raise UserError(
                    f"model.name: {name} cannot be cut: {child}, with parameters, is neither before nor after its layers"
                )
            trimmed._modules[child] = copy.deepcopy(module)
    owner, *rest = path.split(".")
    at = trimmed
    for step in [owner, *rest][:-1]:
        inner = copy.copy(at._modules[step])
        inner._modules = dict(inner._modules)
        at._modules[step] = inner
        at = inner
    at._modules[path.rpartition(".")[2]] = nn.ModuleList(
        layer if first <= index < end else Skip() for index, layer in enumerate(model.get_submodule(path))
    )
    return trimmed


@torch.no_grad()
def _check_equal(name: str, model: nn.Module, blocks: list[nn.Module]) -> None:
    """Refuse a network whose blocks, one after another, do not give what it gives, bit for bit in evaluation."""
    x, mask = torch.arange(8).view(2, 4) % model.config.vocab_size, torch.tensor([[True] * 4, [True] * 3 + [False]])
    try:
        with eval_mode(model), eval_mode(nn.ModuleList(blocks)):
            expected = model(input_ids=x, attention_mask=mask).last_hidden_state
            for block in blocks:
                x = block(x, mask)
    except Exception as error:  # of the network's own code
        raise UserError(f"model.name: {name} cannot be cut: {error_line(error)}") from error
    if not torch.equal(x, expected):
        raise UserError(f"model.name: {name} cannot be cut: its layers, one after another, do not give what it gives")
