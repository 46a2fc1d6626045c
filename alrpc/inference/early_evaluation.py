"""The evaluation of early exits: what they keep of the full path's accuracy, and what they save of its operations and its time."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from alrpc.analysis.contents import EarlyExits
from alrpc.analysis.scores import score_interval
from alrpc.config import Config
from alrpc.data.loader import evaluation_requests, load_micro_batches
from alrpc.inference.calibrate import timed
from alrpc.inference.early_exit import confidence, early_exit, predict_early, tempered
from alrpc.inference.evaluation import about, tested
from alrpc.inference.held_out import Outcomes
from alrpc.inference.predictor import Predictor
from alrpc.objectives.base import Tensors, eval_mode
from alrpc.system import own_arithmetic
from alrpc.training.step import autocast


def evaluate_early(predictor: Predictor, config: Config, choice: EarlyExits) -> dict:
    """Evaluate one of a calibration's choices of early exits on the test split of the data that a configuration names.

    Both ways, the full path and the early exits, are timed on each micro-batch in turn; reading it is not.

    Returns:
        A dictionary for JSON: `run`, `step`, `data`, `metric`, `samples`, `chance`; `calibrated_on`, the data, split and samples of
        the calibration; `full_accuracy`; `accuracy`, its 95 % `interval`, and `kept`, its share of the full path's (None where that is
        0); `mean_exit`; `compute` and `time`, shares of the full path's operations and wall time; `exits`, for each that is tried
        `exit`, the share of the samples `leaving` by it, and their `accuracy`; and `choices`, for each one of the calibration what it
        would give on these samples: `exits`, `accuracy`, `compute`.

    Raises:
        UserError: for data that cannot be read, or are of another kind than the run's.
    """
    calibration, dataset = predictor.calibration, tested(predictor, config)
    device = next(predictor.parameters()).device
    leave = partial(predict_early, predictor, early=early_exit(calibration, choice))
    temperatures = [each["temperature"] for each in calibration["exits"]]
    seconds = {"full": 0.0, "early": 0.0}
    of_exits, early_right, left_by = [], [], []
    wanted = evaluation_requests(dataset, "test", config.data.batch_size, 0)
    with own_arithmetic(device, config.threads), eval_mode(predictor), autocast(device, config.precision), torch.no_grad():
        for _, _, tensors, labels in load_micro_batches(dataset, wanted, config.train.seed, config.data.workers):
            batch = {name: tensor.to(device) for name, tensor in tensors.items()}
            if not of_exits:  # what is computed first takes longer
                timed(predictor, batch)
                timed(leave, batch)
            seconds["full"] += timed(predictor, batch)[1]
            (scores, exits), duration = timed(leave, batch)
            seconds["early"] += duration
            early_right.append(scores.argmax(dim=1).cpu() == labels)
            left_by.append(exits.cpu())
            of_exits.append(_of_exits(predictor, batch, labels.to(device), temperatures))
    sure, right = (torch.cat(each, dim=1).numpy() for each in zip(*of_exits, strict=True))
    costs = [[each[name] for each in calibration["exits"]] for name in ("block_flops", "exit_flops")]
    outcomes = Outcomes(sure, right, *map(np.array, costs))
    full, samples = float(right[-1].mean()), right.shape[1]
    correct, left = torch.cat(early_right).numpy(), torch.cat(left_by).numpy()
    accuracy = float(correct.mean())
    return {
        **about(predictor, config, samples),
        "calibrated_on": {name: calibration[name] for name in ("data", "split", "samples")},
        "full_accuracy": full,
        "accuracy": accuracy,
        "interval": score_interval("accuracy", accuracy, samples),
        "kept": accuracy / full if full else None,
        "mean_exit": float(left.mean()),
        "compute": outcomes.compute(choice["exits"], np.searchsorted(choice["exits"], left)),
        "time": seconds["early"] / seconds["full"],
        "exits": [_of_those(exit, left == exit, correct) for exit in choice["exits"]],
        "choices": [_elsewhere(outcomes, each) for each in calibration["choices"]],
    }


def _of_exits(predictor: Predictor, tensors: Tensors, labels: Tensor, temperatures: list[float]) -> tuple[Tensor, Tensor]:
    """For each exit and sample, (L, N): the calibrated probability of the likeliest class, and whether it is the label."""
    parts, outputs, sure, right = [], [], [], []
    for component, temperature in zip(predictor.components, temperatures, strict=True):
        tensors, output = component.evaluate(tensors)
        parts.append(component.exit_parts())
        outputs.append(output)
        decoded = predictor.objective.decode(parts, outputs)
        sure.append(confidence(tempered(decoded, temperature)).cpu())
        right.append((predictor.target.decide(decoded) == labels).cpu())
    return torch.stack(sure), torch.stack(right)


def _of_those(exit: int, leaving: np.ndarray, correct: np.ndarray) -> dict:
    return {
        "exit": exit,
        "leaving": float(leaving.mean()),
        "accuracy": float(correct[leaving].mean()) if leaving.any() else None,
    }


def _elsewhere(outcomes: Outcomes, choice: EarlyExits) -> dict:
    """What one of a calibration's choices gives on other samples."""
    tried = choice["exits"]
    left = outcomes.left_by(tried, choice["thresholds"])
    return {"exits": tried, "accuracy": outcomes.accuracy(tried, left), "compute": outcomes.compute(tried, left)}
