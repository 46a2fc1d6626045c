"""Early exits that save work: each sample leaves by the first exit that is sure enough, and only the others are computed further."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alrpc.analysis.contents import Calibration, EarlyExits
from alrpc.network import Network
from alrpc.objectives.base import Component, Tensors


@dataclass(frozen=True)
class EarlyExit:
    """Which exits are tried, and how sure one must be of a sample for it to leave."""

    thresholds: dict[int, float]
    """For each exit that is tried, from 1 and ascending, the least calibrated probability of the likeliest class; 0 for the last."""
    temperatures: dict[int, float]
    """For each of them, what its outputs are divided by."""


def early_exit(calibration: Calibration, choice: EarlyExits) -> EarlyExit:
    """One of a calibration's choices, with the temperatures of its exits."""
    exits = choice["exits"]
    temperatures = {exit: calibration["exits"][exit - 1]["temperature"] for exit in exits}
    return EarlyExit(dict(zip(exits, choice["thresholds"], strict=True)), temperatures)


def tempered(output: Tensor, temperature: float) -> Tensor:
    """The decoded output of an exit, (N, classes), whose softmax are calibrated probabilities, whatever the objective learns."""
    return output.float() / temperature


def confidence(scores: Tensor) -> Tensor:
    """The probability of the likeliest class, (N,), by tempered outputs, (N, classes)."""
    return scores.softmax(dim=1).amax(dim=1)


def step(component: Component, tensors: Tensors, is_wanted: bool) -> tuple[Tensors, Tensor | None]:
    """What the next component gets, and the prediction of this one's exit before decoding, if it is wanted."""
    if is_wanted:
        return component.evaluate(tensors)
    return component.hand_over(component.activate(tensors)), None


@torch.no_grad()
def predict_early(network: Network, tensors: Tensors, early: EarlyExit) -> tuple[Tensor, Tensor]:
    """Predict the samples of a micro-batch, each by the first exit that is sure enough of it.

    After each exit the samples that stay are copied together, so that the next blocks compute nothing else. The answers are those of
    the exits by which the samples leave, but for rounding: a kernel may round a smaller micro-batch otherwise.

    Args:
        tensors: what enters the network, (N, ...) each.

    Returns:
        The tempered outputs, (N, classes) float32, and the numbers of the exits, (N,) int64.
    """
    rows = torch.arange(len(next(iter(tensors.values()))), device=next(network.parameters()).device)
    exits = torch.zeros_like(rows)
    answers, outputs, parts = None, [], []
    for number, component in enumerate(network.components[: max(early.thresholds)], 1):
        parts.append(component.exit_parts())
        tensors, output = step(component, tensors, number in early.thresholds or network.objective.combines_exits)
        if output is not None:
            outputs.append(output)
        if number not in early.thresholds:
            continue
        scores = tempered(network.objective.decode(parts, outputs), early.temperatures[number])
        stays = confidence(scores) < early.thresholds[number]  # what is not a number leaves, to be told
        left, kept = (~stays).nonzero().flatten(), stays.nonzero().flatten()
        answers = scores.new_zeros(len(exits), scores.shape[1]) if answers is None else answers
        answers[rows[left]], exits[rows[left]] = scores[left], number
        if not len(kept):
            break
        if len(left):
            rows = rows[kept]
            tensors = {name: tensor.index_select(0, kept) for name, tensor in tensors.items()}
            outputs = [output.index_select(0, kept) for output in outputs]
    return answers, exits
