"""Trained parameters for a model, from a file of safetensors or of torch.save."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from alrpc.errors import UserError, error_line
from alrpc.models.parts import Parts
from alrpc.reading.regular import open_regular
from alrpc.reading.tensors import open_tensors

FEW = 3  # names that a message tells
UNTRAINED = ("num_batches_tracked", "position_ids")  # the last part of names that older files have, or lack


@torch.no_grad()
def load_weights(parts: Parts, path: Path) -> None:
    """Load a file's tensors into a model's blocks, and into its classifier as far as they fit there.

    Args:
        parts: whose lazy modules have their sizes.

    Raises:
        UserError: naming the file, and what is missing, unknown, of another shape or kind, or not finite.
    """
    whole = parts.whole if parts.whole is not None else nn.ModuleList(parts.blocks)
    own = whole.state_dict(keep_vars=True)
    in_blocks = {id(tensor) for block in parts.blocks for tensor in block.state_dict(keep_vars=True).values()}
    needed = {name for name, tensor in own.items() if id(tensor) in in_blocks and not name.endswith(UNTRAINED)}
    read = _without_prefix(_read(path), getattr(whole, "base_model_prefix", ""))
    given = {name: tensor for name, tensor in read.items() if name in own or not name.endswith(UNTRAINED)}
    problems = [
        _listed("it lacks", needed - given.keys()),
        _listed("it has the unknown", given.keys() - own.keys()),
        *(
            _unlike(name, given[name], own[name])
            for name in sorted(own.keys() & given.keys())
            if name in needed or given[name].shape == own[name].shape
        ),
    ]
    found = [problem for problem in problems if problem]
    if found:
        names = ", ".join(list(own)[:FEW])
        raise UserError(
            f"model.weights: {path} does not fit the model: {'; '.join(found[:FEW])}; the model's names are {names}, …"
        )
    for name, tensor in given.items():
        if tensor.shape == own[name].shape:
            own[name].copy_(tensor)


def _unlike(name: str, given: Tensor, own: Tensor) -> str:
    """A sentence about a tensor that cannot be loaded into the model's; "" for one that can."""
    if given.shape != own.shape:
        return f"{name} is {tuple(given.shape)}, but the model's {tuple(own.shape)}"
    if given.is_complex() != own.is_complex() or (own.is_floating_point() and not given.is_floating_point()):
        return f"{name} is {given.dtype}, but the model's {own.dtype}"
    if own.isfinite().all() and not given.to(own.dtype).isfinite().all():  # a mask of the model's own may have infinities
        return f"{name} has numbers that are not finite"
    return ""


def _listed(what: str, names: Collection[str]) -> str:
    """A sentence's end about some names; "" for none."""
    some = ", ".join(sorted(names)[:FEW])
    return f"{what} {some}{f' and {len(names) - FEW} more' if len(names) > FEW else ''}" if names else ""


def _without_prefix(given: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a network's base, if they are beside those of a head for some task; else all of them."""
    of_base = {name.removeprefix(f"{prefix}."): tensor for name, tensor in given.items() if name.startswith(f"{prefix}.")}
    return of_base if prefix and of_base else given


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with open_tensors(path) as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  safe_open is no dict
    with open_regular(path) as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind, for a file that is no state dict
            raise UserError(
                f"model.weights: {path}: torch's weights-only loader refuses it: {error_line(error)[:300]}"
            ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(each, Tensor) and each.layout is torch.strided and not each.is_quantized
        for name, each in state.items()
    ):
        held = f"a dict of {', '.join(map(str, list(state)[:FEW]))}, …" if isinstance(state, dict) else type(state).__name__
        raise UserError(f"model.weights: {path} holds {held}; it must be a state dict, of dense tensors by name")
    return state
