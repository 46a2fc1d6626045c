"""Build components from ordinary blocks and a sample; all sizes are inferred by running the sample through the blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from alrpc.errors import UserError
from alrpc.objectives.base import Component, Objective, Place, Tensors, as_tensors, call, eval_mode, gives, storage


def build_components(
    blocks: Sequence[nn.Module],
    sample: Tensor | Tensors,
    objective: Objective,
    own: Mapping[str, Sequence[nn.Module | None] | None],
) -> list[Component]:
    """Build a component for each block, with the modules of the objective.

    Args:
        sample: a micro-batch of at least one sample, (N, ...), or named tensors.
        own: the user's own modules, by the plural name of the part that they replace, one for each block; None for the
            default.

    Raises:
        UserError: naming the argument, block or component that is wrong.
    """
    if not blocks:
        raise UserError("blocks: got none; a network needs at least one block")
    for name, given in own.items():
        if given is not None and len(given) != len(blocks):
            raise UserError(f"{name}: got {len(given)} for {len(blocks)} blocks; give one for each, None for the default")
    activations = trace_blocks(blocks, as_tensors(sample))
    beside = objective.begin(objective.target.blank(len(next(iter(activations[0].values())))))
    components = []
    for index, (block, leaving) in enumerate(zip(blocks, activations, strict=True)):
        given = {name.removesuffix("s"): modules[index] for name, modules in own.items() if modules is not None}
        parts, after = objective.build(
            Place(index + 1, block, leaving, beside, {name: module for name, module in given.items() if module is not None})
        )
        components.append(Component(index + 1, block, objective, parts))
        beside = after
    _refuse_sharing(components)
    return components


@torch.no_grad()
def run_sample(module: nn.Module, tensors: Tensors, who: str, takes: tuple[str, ...] = ("x",)):
    """Run a module on the sample, in evaluation mode so that no buffer changes, and return its output.

    Raises:
        UserError: naming `who` and the shapes on which the module fails.
    """
    try:
        with eval_mode(module):
            return call(module, tensors, takes)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{who} ({type(module).__name__}) fails on {shapes}: {reason}") from error


def trace_blocks(blocks: Sequence[nn.Module], tensors: Tensors) -> list[Tensors]:
    """Run a sample through the blocks and return the named tensors that leave each one; lazy modules infer their sizes from it.

    Raises:
        UserError: naming a block that fails, or whose output is not allowed.
    """
    _refuse_reserved(tensors, "the sample")
    outputs = []
    for number, block in enumerate(blocks, 1):
        output = run_sample(block, tensors, f"block {number}")
        names, given = gives(block), output if isinstance(output, tuple) else (output,)
        if len(names) != len(given) or not all(isinstance(tensor, Tensor) for tensor in given):
            raise UserError(
                f"block {number} ({type(block).__name__}) says it gives {names}, but its output is not "
                f"{'one tensor' if len(names) == 1 else f'a tuple of {len(names)} tensors'}"
            )
        _refuse_reserved(names, f"block {number}")
        own = {storage(tensor) for tensor in (*block.parameters(), *block.buffers())}
        for name, tensor in zip(names, given, strict=True):
            if tensor.numel() and storage(tensor) in own:
                raise UserError(
                    f"block {number} gives one of its own parameters or buffers as {name!r}; give a copy (.clone()), "
                    "since training changes it while it travels"
                )
        tensors = {**tensors, **dict(zip(names, given, strict=True))}
        outputs.append(tensors)
    return outputs


def _refuse_reserved(names: Iterable[str], giver: str) -> None:
    for name in names:
        if name in ("target", "label") or "." in name:
            raise UserError(f"{giver} gives a tensor {name!r}; 'target', 'label' and names with a dot belong to the engine")


def _refuse_sharing(components: Sequence[Component]) -> None:
    """Refuse tensors shared by two components, since each component is updated by itself, possibly in its own process."""
    owner: dict[int, int] = {}
    for component in components:
        for tensor in (*component.parameters(), *component.buffers()):
            first = owner.setdefault(id(tensor), component.number)
            if first != component.number:
                raise UserError(f"components {first} and {component.number} share a parameter or buffer; each must own its own")
