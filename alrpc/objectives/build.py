"""Build components from ordinary blocks and a sample; all sizes are inferred by running the sample through the blocks."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any

import torch
from torch import Tensor, nn

from alrpc import config
from alrpc.config.own_code import call_own, import_function
from alrpc.errors import Advice, UsageError, UserError
from alrpc.objectives import OBJECTIVES
from alrpc.objectives.base import Component, Objective, Place, Tensors, as_tensors, call, eval_mode, gives, storage
from alrpc.objectives.targets import Classes, Target


def make_objective(chosen: str | Callable[..., Objective], target: Target, fields: Mapping[str, Any]) -> Objective:
    """Make an objective of this package, or the user's own.

    Args:
        chosen: a name of `alrpc.objectives.OBJECTIVES`; or the user's own class or function, or its name as `package.module:Class`,
            called with the target and the fields, that gives an `Objective`.

    Raises:
        UsageError: for an unknown name, a field that the objective refuses, or the exception that the user's class raised.
    """
    if isinstance(chosen, str) and ":" not in chosen:
        config.parse_section("objective", {"name": chosen})
        return pkgutil.resolve_name(OBJECTIVES[chosen])(target, **fields)
    make = import_function(chosen, "objective.name") if isinstance(chosen, str) else chosen
    name = chosen if isinstance(chosen, str) else getattr(chosen, "__name__", repr(chosen))
    if not callable(make):
        raise UsageError(f"objective: got {name}; give the name of an objective, or an alrpc.Objective of your own")
    objective = call_own(make, name, "objective.name", target, **fields)
    if not isinstance(objective, Objective):
        raise UsageError(f"objective.name: {name} gave {type(objective).__name__}; it must give an alrpc.Objective")
    return objective


def check_class_weights(objective: Objective, target: Target) -> None:
    """Refuse, with a UsageError, a target whose classes weigh differently where no loss heeds it."""
    if isinstance(target, Classes) and target.weights is not None and not objective.weighs_classes:
        raise UsageError(
            "train.class_weights: weigh a cross entropy, and this objective has none; associated has one with "
            "objective.autoencoder_loss=cross_entropy, classifier without a loss of your own"
        )


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
            default. Parts that the objective does not have are left aside.

    Raises:
        UserError: naming the argument, block or component that is wrong.
    """
    check_class_weights(objective, objective.target)
    _check_modules("blocks", blocks, nn.Module)
    if not blocks:
        raise UserError("blocks: got none; a network needs at least one block")
    for name, given in own.items():
        if given is None:
            continue
        _check_modules(name, given, nn.Module | None)
        if len(given) != len(blocks):
            raise UserError(f"{name}: got {len(given)} for {len(blocks)} blocks; give one for each, None for the default")
    entering = check_sample(sample, "sample_input")
    activations = trace_blocks(blocks, entering)
    beside = objective.begin(objective.target.blank(len(next(iter(entering.values())))))
    components = []
    for index, (block, leaving) in enumerate(zip(blocks, activations, strict=True)):
        given = {part: own[f"{part}s"][index] for part in objective.own_parts if own.get(f"{part}s") is not None}
        given = {part: module for part, module in given.items() if module is not None}
        place = Place(index + 1, blocks, entering, leaving, beside, given)
        try:
            parts, after = objective.build(place)
        except (RuntimeError, MemoryError) as error:  # no memory, mostly
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"component {index + 1}: its modules cannot be made: {reason}") from error
        components.append(Component(index + 1, block, objective, parts))
        entering, beside = leaving, after
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


def _check_modules(argument: str, given: object, allowed: type | UnionType) -> None:
    """Check that an argument is a list of modules."""
    if not isinstance(given, Sequence | nn.Sequential | nn.ModuleList) or isinstance(given, str):
        raise UserError(f"{argument}: got {_described(given)}; give a list of modules")
    for number, module in enumerate(given, 1):
        if not isinstance(module, allowed):
            raise UserError(f"{argument}: number {number} is {_described(module)}; each must be an nn.Module")


def check_sample(sample: object, argument: str) -> Tensors:
    """The sample as named tensors; raises UserError naming the argument if it is none."""
    tensors = as_tensors(sample) if isinstance(sample, Tensor | Mapping) else {}
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.ndim and len(tensor) for tensor in tensors.values()):
        raise UserError(
            f"{argument}: got {_described(sample)}; give a tensor of at least one sample, (N, ...), or a dict of tensors by name"
        )
    return tensors


def _described(given: object) -> str:
    kind = given.__name__ if callable(given) and hasattr(given, "__name__") else type(given).__name__
    return f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else kind


def _refuse_reserved(names: Iterable[str], giver: str) -> None:
    for name in names:
        if name in ("target", "label") or "." in name:
            raise UserError(f"{giver} gives a tensor {name!r}; 'target', 'label' and names with a dot belong to the engine")


def warn_of_idle_blocks(blocks: Sequence[nn.Module], more: str = "", stacklevel: int = 3) -> None:
    """Warn of blocks that have nothing to learn, since each is made a component all the same.

    Args:
        more: what else to say of these components.
        stacklevel: as for `warnings.warn`.
    """
    idle = [
        f"{number} ({type(block).__name__})" for number, block in enumerate(blocks, 1) if next(block.parameters(), None) is None
    ]
    if idle:
        listed = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
        warnings.warn(
            f"blocks without parameters: {listed}, of {len(blocks)}; each is a component that trains no block{more}; join each "
            "with the block before it in an nn.Sequential, or let alrpc.cut(model, n) make n blocks of similar cost",
            Advice,
            stacklevel,
        )


def _refuse_sharing(components: Sequence[Component]) -> None:
    """Refuse tensors shared by two components, since each component is updated by itself, possibly in its own process."""
    owner: dict[int, int] = {}
    for component in components:
        for tensor in (*component.parameters(), *component.buffers()):
            first = owner.setdefault(id(tensor), component.number)
            if first != component.number:
                raise UserError(f"components {first} and {component.number} share a parameter or buffer; each must own its own")
