"""Early exits that save work: each sample leaves as soon as a rule lets it, and only the others are computed further.

There are two rules: calibrated confidence (`EarlyExit`), and the agreement of successive exits (`Agreement`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from alrpc.analysis.contents import Calibration, EarlyExits
from alrpc.network import Network
from alrpc.objectives.base import Component, Objective, Tensors


@dataclass(frozen=True)
class EarlyExit:
    """A sample leaves by the first exit that is sure enough of it: which exits are tried, and how sure one must be."""

    thresholds: dict[int, float]
    """For each exit that is tried, from 1 and ascending, the least calibrated probability of the likeliest class; 0 for the last."""
    temperatures: dict[int, float]
    """For each of them, what its outputs are divided by."""

    def is_tried(self, exit: int) -> bool:
        return exit in self.thresholds

    def stays(self, exit: int, output: Tensor, before: Tensors) -> tuple[Tensor, Tensors]:
        """See `Agreement.stays`; of earlier exits nothing is kept."""
        sure = confidence(tempered(output, self.temperatures[exit]))
        return sure < self.thresholds[exit], {}  # what is not a number leaves, to be told

    def probabilities(self, objective: Objective, output: Tensor, exits: Tensor) -> Tensor:
        """The calibrated probabilities, (N, classes), by decoded outputs, (N, classes), of exits, (N,)."""
        temperatures = output.new_tensor([self.temperatures[exit] for exit in exits.tolist()])
        return tempered(output, temperatures[:, None]).softmax(dim=1)


@dataclass(frozen=True)
class Agreement:
    """A sample leaves once so many pairs of successive exits agree on it: they have the same likeliest class, and the cosine similarity of
    their outputs is above a limit.

    This is the adaptive inference of DeInfoReg (Huang, Lin & Chen, arXiv 2506.18193), decided for each sample by itself. It needs no
    calibration. All exits are tried.
    """

    similarity: float = 0.8
    """The limit, from -1 and below 1."""
    patience: int = 1
    """How many pairs must agree, at least 1; those that do not agree in between take nothing away."""

    def is_tried(self, exit: int) -> bool:
        return True

    def stays(self, exit: int, output: Tensor, before: Tensors) -> tuple[Tensor, Tensors]:
        """Whether samples that have come to an exit go on.

        Args:
            output: its decoded outputs, (N, classes) float32.
            before: what the rule kept of these samples at the exit tried before, (N, ...) each; {} at the first one.

        Returns:
            Which samples go on, (N,) bool, and what is kept of all of them for the next exit.
        """
        if before:
            is_alike = functional.cosine_similarity(output, before["output"], dim=1) > self.similarity
            agreed = before["agreed"] + (is_alike & (output.argmax(dim=1) == before["output"].argmax(dim=1)))
        else:
            agreed = torch.zeros(len(output), dtype=torch.int64, device=output.device)
        return agreed < self.patience, {"output": output, "agreed": agreed}

    def probabilities(self, objective: Objective, output: Tensor, exits: Tensor) -> Tensor:
        """The objective's own probabilities, (N, classes), by decoded outputs, (N, classes)."""
        return objective.probabilities(output)


Rule = EarlyExit | Agreement


def early_exit(calibration: Calibration, choice: EarlyExits) -> EarlyExit:
    """One of a calibration's choices, with the temperatures of its exits."""
    exits = choice["exits"]
    temperatures = {exit: calibration["exits"][exit - 1]["temperature"] for exit in exits}
    return EarlyExit(dict(zip(exits, choice["thresholds"], strict=True)), temperatures)


def tempered(output: Tensor, temperature: float | Tensor) -> Tensor:
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
def predict_early(network: Network, tensors: Tensors, rule: Rule) -> tuple[Tensor, Tensor]:
    """Predict the samples of a micro-batch, each by the exit at which a rule lets it leave, or else by the last one.

    After each exit the samples that stay are copied together, so that the next blocks compute nothing else. The answers are those of
    the exits by which the samples leave, but for rounding: a kernel may round a smaller micro-batch otherwise.

    Args:
        tensors: what enters the network, (N, ...) each.

    Returns:
        The decoded outputs, (N, classes) float32, and the numbers of the exits, (N,) int64.
    """
    rows = torch.arange(len(next(iter(tensors.values()))), device=next(network.parameters()).device)
    exits = torch.zeros_like(rows)
    answers, outputs, parts, before = None, [], [], {}
    for number, component in enumerate(network.components, 1):
        parts.append(component.exit_parts())
        is_tried = rule.is_tried(number)
        tensors, output = step(component, tensors, is_tried or network.objective.combines_exits)
        if output is not None:
            outputs.append(output)
        if not is_tried:
            continue
        decoded = network.objective.decode(parts, outputs).float()
        stays, before = rule.stays(number, decoded, before)
        if number == len(network.components):
            stays = torch.zeros_like(stays)
        left, kept = (~stays).nonzero().flatten(), stays.nonzero().flatten()
        answers = decoded.new_zeros(len(exits), decoded.shape[1]) if answers is None else answers
        answers[rows[left]], exits[rows[left]] = decoded[left], number
        if not len(kept):
            break
        if len(left):
            rows = rows[kept]
            tensors, before = (
                {name: tensor.index_select(0, kept) for name, tensor in each.items()} for each in (tensors, before)
            )
            outputs = [output.index_select(0, kept) for output in outputs]
    return answers, exits
