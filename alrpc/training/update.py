"""The only code that trains: one component, one micro-batch. Both engines call it in a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alrpc.component import Component, Step, Tensors
from alrpc.precision import computing
from alrpc.random_stream import begin_stream
from alrpc.training.optimizer import Recipe, make_optimizer, take_step, turn_of


@dataclass(frozen=True)
class Learner:
    """A component that trains: its number l, its optimizer, its recipe and the device that it lives on."""

    number: int
    component: Component
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    device: torch.device


def make_learner(number: int, component: Component, recipe: Recipe, device: torch.device) -> Learner:
    """Move a component to its device and give it an optimizer with one rate for f and b, another for g and h."""
    component.to(device).train()
    if recipe.compile:
        component.compute = torch.compile(component.compute)
    groups = [(component.forward_parameters(), recipe.lr), (component.target_parameters(), recipe.target_lr)]
    return Learner(number, component, make_optimizer(groups, recipe), recipe, device)


def update(
    learner: Learner,
    tensors: Tensors,
    target: Tensor,
    step: int,
    hand_on: Callable[[Step], None],
    enter: Callable[[str, int], object] = lambda state, component: None,
) -> tuple[Tensor, Tensor, bool]:
    """Train one component on one micro-batch: forward, hand on, backward, optimizer step.

    `hand_on` is called once the forward pass is done and before the backward pass begins, so that the next component
    can start while this one still learns.

    Where the recipe says skip, a loss or gradient that is not finite leaves the component, its buffers included, as it was.

    With accumulation over k micro-batches the gradients of k are averaged before one optimizer step; a group never
    crosses the end of an epoch, so the last of an epoch may be smaller.

    Args:
        tensors: s_{l-1} and whatever else travels with it.
        target: t_{l-1}, (N, width).
        step: the micro-batch's number in the run, from 0.
        enter: told of forward, handling (the hand-over), backward and update as they begin; see `alrpc.timing.Timing.enter`.

    Returns:
        The associated loss and the autoencoder loss, scalars without graph; and whether the update was skipped.
    """
    recipe, number = learner.recipe, learner.number
    enter("forward", number)
    may_skip = recipe.nonfinite == "skip"
    buffers = [(buffer, buffer.clone()) for buffer in learner.component.buffers()] if may_skip else []
    begin_stream(learner.device, recipe.seed, number, step)
    with computing(learner.device, recipe.precision):
        result = learner.component(tensors, target)
    enter("handling", number)
    hand_on(result)

    enter("backward", number)
    turn = turn_of(step, recipe)
    losses = [loss for loss in (result.associated_loss, result.autoencoder_loss) if loss.requires_grad]
    torch.autograd.backward([loss / turn.size for loss in losses] if turn.size > 1 else losses)
    enter("update", number)
    # Clips the gradient of each of the two losses by itself.
    skipped = turn.last and not take_step(learner.optimizer, recipe, turn.number)
    associated, autoencoder = result.associated_loss.detach(), result.autoencoder_loss.detach()
    if may_skip and (skipped or not (associated + autoencoder).isfinite()):
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)  # running means that have seen a value which is not finite never recover
    enter("handling", number)
    return associated, autoencoder, skipped
