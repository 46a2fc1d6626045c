"""What a component's state is: parameters, buffers, optimizer, and gradients in the middle of an accumulation.

Random numbers, order of samples and learning rates are functions of the seed and the step, so there is no state of theirs.
"""

from __future__ import annotations

from torch import Tensor

from alrpc.training.step import Trainer

State = dict[str, Tensor]
PREFIXES = ("optimizer", "gradient")


def snapshot(trainer: Trainer) -> State:
    """Copies, on the CPU, of all that a component's further training depends on."""
    state = dict(trainer.component.state_dict())
    for index, kept in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in kept.items() if isinstance(value, Tensor)}
    for name, parameter in trainer.component.named_parameters():
        if parameter.grad is not None:
            state[f"gradient.{name}"] = parameter.grad
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}


def split_state(state: State) -> tuple[State, State, State]:
    """What a snapshot has for the component, for its optimizer, and gradients."""
    parts: tuple[State, ...] = ({}, {}, {})
    for name, tensor in state.items():
        kind, _, rest = name.partition(".")
        place = PREFIXES.index(kind) + 1 if kind in PREFIXES else 0
        parts[place][rest if place else name] = tensor
    return parts


def restore(trainer: Trainer, state: State) -> None:
    """Put a snapshot back. Raises RuntimeError for another component's."""
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
