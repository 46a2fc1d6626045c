"""A component's state: parameters, buffers, optimizer state, and gradients in the middle of an accumulation.

Random numbers, the order of samples and learning rates are functions of seed and step, so they have no state.
"""

from __future__ import annotations

from torch import Tensor

from alrpc.training.step import Trainer

State = dict[str, Tensor]
PREFIXES = ("optimizer", "gradient")


def snapshot(trainer: Trainer) -> State:
    """Copy all state on which a component's further training depends to the CPU."""
    state = dict(trainer.component.state_dict())
    for index, kept in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in kept.items() if isinstance(value, Tensor)}
    for name, parameter in trainer.component.named_parameters():
        if parameter.grad is not None:
            state[f"gradient.{name}"] = parameter.grad
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}


def split_state(state: State) -> tuple[State, State, State]:
    """Split a snapshot into the component's own state, the optimizer's state and the gradients."""
    parts: tuple[State, ...] = ({}, {}, {})
    for name, tensor in state.items():
        kind, _, rest = name.partition(".")
        index = PREFIXES.index(kind) + 1 if kind in PREFIXES else 0
        parts[index][rest if index else name] = tensor
    return parts


def restore(trainer: Trainer, state: State) -> None:
    """Load a snapshot into a trainer; raises RuntimeError for a snapshot of another component."""
    own, optimizer, gradients = split_state(state)
    trainer.component.load_state_dict(own)
    kept: dict[int, State] = {}
    for name, tensor in optimizer.items():
        index, key = name.split(".", 1)
        kept.setdefault(int(index), {})[key] = tensor
    trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": kept})
    for name, parameter in trainer.component.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)
