"""Calibration of a run's exits on held-out samples: a temperature for each, its quality and cost, and choices of early exits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from alrpc import __version__
from alrpc.analysis.contents import Calibration, EarlyExits
from alrpc.analysis.quality import check_trained_on, choose_samples
from alrpc.config import Config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset
from alrpc.data.loader import Request, load_micro_batches, split_of
from alrpc.errors import UsageError, UserError
from alrpc.inference.calibration import chosen
from alrpc.inference.early_exit import confidence, early_exit, predict_early, tempered
from alrpc.inference.evaluation import tested
from alrpc.inference.flops import count_flops
from alrpc.inference.held_out import Costs, Outcomes, calibration_error, failure_auroc, fit_temperature
from alrpc.inference.predictor import Predictor
from alrpc.objectives.base import Tensors, eval_mode
from alrpc.reading.regular import MIB
from alrpc.system import own_arithmetic, synchronize
from alrpc.training.step import autocast

T = TypeVar("T")
Split = Literal["validation", "test"]
MOST = 1024 * MIB  # of the outputs of all exits; of more samples some are drawn
TIMED, ROUNDS = 4, 2  # micro-batches that are timed, and how often
TIMED_CHOICES = 10


def calibrate(
    predictor: Predictor,
    config: Config,
    split: Split = "validation",
    *,
    candidates: Sequence[int] | None = None,
    target_accuracy: float | None = None,
    budget: float | None = None,
) -> Calibration:
    """Calibrate the exits of a run.

    Args:
        config: that of the run, perhaps with other data; see `alrpc.inference.evaluation.changed_data`.
        split: `validation`, that of the training; or `test`, the test split of the data that the configuration names.
        candidates: the exits that may be tried before the last one; None for all.
        target_accuracy, budget: what is asked for, exactly one of them; see `alrpc.inference.calibration.choose`.

    Raises:
        UsageError: for a regression, a network of one exit, exits that there are not, or a run without a validation split.
        UserError: for data that cannot be read or are of another kind, or outputs that are not finite.
    """
    predictor.check_classes()
    candidates = _check_candidates(candidates, len(predictor.components))
    dataset = _held_out(predictor, config, split)
    device = next(predictor.parameters()).device
    with own_arithmetic(device, config.threads), eval_mode(predictor), autocast(device, config.precision), torch.no_grad():
        outputs, labels, first = _observe(predictor, dataset, config, split)
        described = [_describe(predictor, exit, output, labels) for exit, output in enumerate(outputs, 1)]
        exits, sure, correct = zip(*described, strict=True)
        costs = Costs(*count_flops(predictor, first[0]))
        of_each = zip(exits, costs.blocks.tolist(), costs.exits.tolist(), strict=True)
        calibration: Calibration = {
            "alrpc": __version__,
            "torch": torch.__version__,
            "step": predictor.manifest["step"],
            "parameters_sha256": predictor.digest(),
            "data": config.data.name,
            "split": split,
            "samples": len(labels),
            "target_accuracy": target_accuracy,
            "budget": budget,
            "exits": [{**each, "block_flops": block, "exit_flops": answer} for each, block, answer in of_each],
            "choices": Outcomes(np.stack(sure), np.stack(correct), costs).choices(candidates),
        }
        _time(predictor, calibration, first)
    return calibration


def _check_candidates(candidates: Sequence[int] | None, depth: int) -> Sequence[int]:
    if depth == 1:
        raise UsageError("the network has a single exit, so no sample can leave it early")
    for exit in candidates or ():
        if not 1 <= exit < depth:
            raise UsageError(f"--exits: got {exit}, but the exits before the last one are 1 to {depth - 1}")
    return sorted(set(candidates)) if candidates else range(1, depth)


def _held_out(predictor: Predictor, config: Config, split: Split) -> Dataset:
    if split == "test":
        return tested(predictor, config)
    samples = predictor.manifest.get("validation_samples", 0)
    if not samples:
        raise UsageError(
            f"{predictor.directory}: has no validation split to calibrate on; train with --set data.validation=0.1, or name held-out "
            "data of the same kind, other than those that will be used to judge it: --split test --set data.test_file=FILE"
        )
    dataset = read_data(config.data, config.train)
    check_trained_on(dataset, predictor.target, config, predictor.manifest)
    found = len(dataset.validation or ())
    if found != samples:
        raise UserError(
            f"data.validation: {found} samples, but the run was trained with {samples}; give it the data that it was trained with"
        )
    return dataset


def _observe(
    predictor: Predictor, dataset: Dataset, config: Config, split: Split
) -> tuple[list[Tensor], Tensor, list[Tensors]]:
    """The decoded outputs of every exit on held-out samples, (N, classes) float32 each; the labels, (N,); and on the device what enters
    the network in the first micro-batches.

    Raises:
        UserError: for outputs that are not finite.
    """
    device, depth = next(predictor.parameters()).device, len(predictor.components)
    indices = choose_samples(len(split_of(dataset, split)), max(1, MOST // (4 * depth * predictor.target.width)))
    wanted = (Request(split, 0, part) for part in indices.split(config.data.batch_size))
    parts = [component.exit_parts() for component in predictor.components]
    decoded: list[list[Tensor]] = [[] for _ in parts]
    all_labels: list[Tensor] = []
    first: list[Tensors] = []
    for _, _, tensors, labels in load_micro_batches(dataset, wanted, config.train.seed, config.data.workers):
        tensors, outputs = {name: tensor.to(device) for name, tensor in tensors.items()}, []
        if len(first) < TIMED:
            first.append(copied(tensors))
        for number, component in enumerate(predictor.components, 1):
            tensors, output = component.evaluate(tensors)
            outputs.append(output)
            decoded[number - 1].append(predictor.objective.decode(parts[:number], outputs).float().cpu())
        all_labels.append(labels.long())
    of_exits = [torch.cat(each) for each in decoded]
    for number, output in enumerate(of_exits, 1):
        if not output.isfinite().all():
            raise UserError(f"exit {number}: its outputs on the {split} samples are not all finite")
    return of_exits, torch.cat(all_labels), first


def _describe(predictor: Predictor, exit: int, output: Tensor, labels: Tensor) -> tuple[dict, np.ndarray, np.ndarray]:
    """What calibration.json tells of an exit, but for its costs; and for each sample the confidence, and whether it is right."""
    temperature = fit_temperature(output.double().numpy(), labels.numpy())
    correct = (predictor.target.decide(output) == labels).numpy()
    before = predictor.objective.probabilities(output).amax(dim=1).numpy()
    sure = confidence(tempered(output, temperature)).numpy()
    described = {
        "exit": exit,
        "temperature": temperature,
        "accuracy": float(correct.mean()),
        "ece": calibration_error(before, correct),
        "ece_calibrated": calibration_error(sure, correct),
        "failure_auroc": failure_auroc(sure, correct),
    }
    return described, sure, correct


def _time(predictor: Predictor, calibration: Calibration, batches: list[Tensors]) -> None:
    """Measure the wall time of some of a calibration's choices, evenly spread, and of the one that is chosen."""
    choices = calibration["choices"]
    places = np.linspace(0, len(choices) - 1, min(TIMED_CHOICES, len(choices))).round().astype(int)
    picked: list[EarlyExits] = [choices[place] for place in places]
    wanted = chosen(calibration)
    for choice in [*picked, *([] if any(wanted is each for each in picked) else [wanted])]:
        leave = partial(predict_early, predictor, rule=early_exit(calibration, choice))
        seconds = [
            [sum(timed(compute, batch)[1] for batch in batches) for compute in (leave, predictor)] for _ in range(ROUNDS)
        ]
        early, full = (min(times) for times in zip(*seconds, strict=True))
        choice["time"] = early / full


def timed(compute: Callable[[Tensors], T], batch: Tensors) -> tuple[T, float]:
    """What is computed of a copy of a micro-batch, and the seconds that it takes."""
    tensors, device = copied(batch), next(iter(batch.values())).device
    synchronize(device)
    begin = time.perf_counter()
    result = compute(tensors)
    synchronize(device)
    return result, time.perf_counter() - begin


def copied(tensors: Tensors) -> Tensors:
    """Copies of tensors, which a block may overwrite."""
    return {name: tensor.clone() for name, tensor in tensors.items()}
