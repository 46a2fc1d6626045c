"""The evaluation of early exits: what they keep of the full path's accuracy, and what they save of its operations and its time."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alrpc.analysis.contents import Calibration
from alrpc.analysis.scores import score_interval
from alrpc.config import Config
from alrpc.data.loader import evaluation_requests, load_micro_batches
from alrpc.inference.calibrate import copied, timed
from alrpc.inference.early_exit import EarlyExit, Rule, confidence, predict_early, tempered
from alrpc.inference.evaluation import about, tested
from alrpc.inference.flops import count_flops
from alrpc.inference.held_out import Costs, Outcomes
from alrpc.inference.predictor import Predictor
from alrpc.objectives.base import Tensors, eval_mode
from alrpc.system import own_arithmetic
from alrpc.training.step import autocast


def evaluate_early(predictor: Predictor, config: Config, rule: Rule) -> dict:
    """Evaluate early exits on the test split of the data that a configuration names.

    Both ways, the full path and the early exits, are timed on each micro-batch in turn; reading it is not.

    Returns:
        A dictionary for JSON: `run`, `step`, `data`, `metric`, `samples`, `chance`; `full_accuracy`; `accuracy`, its 95 % `interval`, and
        `kept`, its share of the full path's (None where that is 0); `mean_exit`; `compute` and `time`, shares of the full path's
        operations and wall time; and `exits`, for each that is tried `exit`, the share of the samples `leaving` by it, and their
        `accuracy`. Of calibrated exits also `calibrated_on`, the data, split and samples of the calibration; and `choices`, for each one
        of the calibration what it would give on these samples: `exits`, `accuracy`, `compute`. Of agreeing exits `agreement`: their
        `similarity` and `patience`.

    Raises:
        UserError: for data that cannot be read, or are of another kind than the run's.
    """
    dataset, device = tested(predictor, config), next(predictor.parameters()).device
    calibration = predictor.calibration if isinstance(rule, EarlyExit) else None
    leave = partial(predict_early, predictor, rule=rule)
    seconds = {"full": 0.0, "early": 0.0}
    full_right, early_right, left_by, of_exits = [], [], [], []
    wanted = evaluation_requests(dataset, "test", config.data.batch_size, 0)
    with own_arithmetic(device, config.threads), eval_mode(predictor), autocast(device, config.precision), torch.no_grad():
        for _, _, tensors, labels in load_micro_batches(dataset, wanted, config.train.seed, config.data.workers):
            batch = {name: tensor.to(device) for name, tensor in tensors.items()}
            if not left_by:  # what is computed first takes longer
                timed(predictor, batch)
                timed(leave, batch)
                costs = _costs(predictor, calibration, batch)
            output, duration = timed(predictor, batch)
            seconds["full"] += duration
            full_right.append(predictor.target.decide(output).cpu() == labels)
            (output, exits), duration = timed(leave, batch)
            seconds["early"] += duration
            early_right.append(predictor.target.decide(output).cpu() == labels)
            left_by.append(exits.cpu())
            if calibration is not None:
                of_exits.append(_of_exits(predictor, batch, labels.to(device), calibration))
    full_correct, correct, left = (torch.cat(each).numpy() for each in (full_right, early_right, left_by))
    full, accuracy = float(full_correct.mean()), float(correct.mean())
    tried = [exit for exit in range(1, len(predictor.components) + 1) if rule.is_tried(exit)]
    return {
        **about(predictor, config, len(left)),
        "full_accuracy": full,
        "accuracy": accuracy,
        "interval": score_interval("accuracy", accuracy, len(left)),
        "kept": accuracy / full if full else None,
        "mean_exit": float(left.mean()),
        "compute": costs.share(tried, np.searchsorted(tried, left)),
        "time": seconds["early"] / seconds["full"],
        "exits": [_of_those(exit, left == exit, correct) for exit in tried],
        **(_of_calibration(calibration, costs, of_exits) if calibration is not None else {"agreement": asdict(rule)}),
    }


def _costs(predictor: Predictor, calibration: Calibration | None, tensors: Tensors) -> Costs:
    """What the calibration has counted, or what is counted of a micro-batch."""
    if calibration is None:
        return Costs(*count_flops(predictor, copied(tensors)))
    return Costs(*(np.array([each[name] for each in calibration["exits"]]) for name in ("block_flops", "exit_flops")))


def _of_exits(predictor: Predictor, tensors: Tensors, labels: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """For each exit and sample, (L, N): the calibrated probability of the likeliest class, and whether it is the label."""
    parts, outputs, sure, right = [], [], [], []
    for component, each in zip(predictor.components, calibration["exits"], strict=True):
        tensors, output = component.evaluate(tensors)
        parts.append(component.exit_parts())
        outputs.append(output)
        decoded = predictor.objective.decode(parts, outputs)
        sure.append(confidence(tempered(decoded, each["temperature"])).cpu())
        right.append((predictor.target.decide(decoded) == labels).cpu())
    return torch.stack(sure), torch.stack(right)


def _of_calibration(calibration: Calibration, costs: Costs, of_exits: list[tuple[Tensor, Tensor]]) -> dict:
    """What was calibrated, and what each choice of the calibration gives on other samples, by `_of_exits` of their micro-batches."""
    sure, right = (torch.cat(each, dim=1).numpy() for each in zip(*of_exits, strict=True))
    outcomes, choices = Outcomes(sure, right, costs), []
    for choice in calibration["choices"]:
        tried = choice["exits"]
        left = outcomes.left_by(tried, choice["thresholds"])
        choices.append({"exits": tried, "accuracy": outcomes.accuracy(tried, left), "compute": costs.share(tried, left)})
    return {"calibrated_on": {name: calibration[name] for name in ("data", "split", "samples")}, "choices": choices}


def _of_those(exit: int, leaving: np.ndarray, correct: np.ndarray) -> dict:
    return {
        "exit": exit,
        "leaving": float(leaving.mean()),
        "accuracy": float(correct[leaving].mean()) if leaving.any() else None,
    }
