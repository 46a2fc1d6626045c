"""A component's state: parameters, buffers, optimizer state, gradients in the middle of an accumulation, and its ring of feedback.

Random numbers, the order of samples and learning rates are functions of seed and step, so they have no state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alrpc.objectives.base import Component
from alrpc.reading.documents import field_name
from alrpc.training.feedback import Ring
from alrpc.training.step import Trainer

State = dict[str, Tensor]
PREFIXES = ("optimizer", "gradient", "feedback")
KEPT = {  # what each optimizer keeps of a parameter: of the parameter's shape, but for the number of steps
    "adam": {"step", "exp_avg", "exp_avg_sq"},
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
    "sgd": {"momentum_buffer"},
    "lars": {"momentum_buffer"},
}


def snapshot(trainer: Trainer) -> State:
    """Copy all state on which a component's further training depends to the CPU."""
    state = dict(trainer.component.state_dict())
    for index, kept in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in kept.items() if isinstance(value, Tensor)}
    for name, parameter in trainer.component.named_parameters():
        if parameter.grad is not None:
            state[f"gradient.{name}"] = parameter.grad
    if trainer.ring is not None:
        state |= {f"feedback.{name}": tensor for name, tensor in trainer.ring.state().items()}
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}


def split_state(state: State) -> tuple[State, State, State, State]:
    """Split a snapshot into the component's own state, the optimizer's state, the gradients and the ring's."""
    parts: tuple[State, ...] = ({}, {}, {}, {})
    for name, tensor in state.items():
        kind, _, rest = name.partition(".")
        index = PREFIXES.index(kind) + 1 if kind in PREFIXES else 0
        parts[index][rest if index else name] = tensor
    return parts


def check_state(component: Component, optimizer: str | None, state: State) -> None:
    """Compare a snapshot's names, types and shapes with the component's; a fused optimizer would read beyond a smaller tensor.

    Args:
        optimizer: one of KEPT, or the user's own, which may keep anything for a parameter; None to compare the component's own
            state alone, which a prediction takes.

    Raises:
        ValueError: naming what is missing, unknown, or of another type or shape.
    """
    if optimizer is None:
        state = split_state(state)[0]
    parameters = [parameter for of_group in component.trained_groups().values() for parameter in of_group]
    own = {name: _describe(tensor) for name, tensor in component.state_dict().items()}
    if optimizer not in KEPT:
        state = {name: tensor for name, tensor in state.items() if not _of_own_optimizer(name, len(parameters))}
    kept = {
        index: {
            f"optimizer.{index}.{key}": "float32 ()" if key == "step" else _describe(parameter)
            for key in KEPT.get(optimizer, ())
        }
        for index, parameter in enumerate(parameters)
    }
    known = {**own, **{f"gradient.{name}": _describe(parameter) for name, parameter in component.named_parameters()}}
    for of_parameter in kept.values():
        known |= of_parameter
        if len(present := of_parameter.keys() & state.keys()) not in (0, len(of_parameter)):
            raise ValueError(f"it has {min(present)}, but no {min(of_parameter.keys() - present)}")
    if missing := own.keys() - state.keys():
        raise ValueError(f"it has no {min(missing)}")
    if component.objective.delay and optimizer is not None:
        feedback = split_state(state)[3]
        Ring(component).load(feedback)
        state = {name: tensor for name, tensor in state.items() if name.removeprefix("feedback.") not in feedback}
    for name, tensor in sorted(state.items(), key=lambda item: (item[0] not in own, item[0])):
        if known.get(name) != _describe(tensor):
            raise ValueError(f"{field_name([name])}: got {_describe(tensor)}; it must be {known.get(name, 'left out')}")
        if name.endswith(".step") and name not in own and not tensor >= 1:
            raise ValueError(f"{name}: got {tensor.item()}; an optimizer has taken 1 step or more")


def _of_own_optimizer(name: str, parameters: int) -> bool:
    kind, _, rest = name.partition(".")
    index = rest.partition(".")[0]
    return kind == "optimizer" and index.isdecimal() and int(index) < parameters


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def restore(trainer: Trainer, state: State) -> None:
    """Load a snapshot into a trainer; raises ValueError for a snapshot of another component."""
    check_state(trainer.component, trainer.recipe.train.optimizer, state)
    own, optimizer, gradients, feedback = split_state(state)
    trainer.component.load_state_dict(own)
    kept: dict[int, State] = {}
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    for name, tensor in optimizer.items():
        index, key = name.split(".", 1)
        kept.setdefault(int(index), {})[key] = _laid_out_as(parameters[int(index)], tensor)
    trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": kept})
    for name, parameter in trainer.component.named_parameters():
        if name in gradients:
            parameter.grad = _laid_out_as(parameter, gradients[name].to(parameter.device))
    if trainer.ring is not None:
        trainer.ring.load(feedback)


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A tensor of a parameter's shape in the parameter's memory layout, which fused optimizers take for granted; another as it is."""
    return torch.empty_like(parameter, device=tensor.device).copy_(tensor) if tensor.shape == parameter.shape else tensor
