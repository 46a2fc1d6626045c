"""The evaluation of a finished run: the score of its exits on its test split, or on other data of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from alrpc.analysis.quality import check_trained_on
from alrpc.analysis.scores import score_interval
from alrpc.checkpoint.changes import check_overrides, check_own_code, config_path
from alrpc.config import Config, load_config
from alrpc.data import read_data, read_test
from alrpc.data.dataset import Dataset
from alrpc.data.loader import evaluation_requests, load_micro_batches
from alrpc.inference.predictor import Predictor
from alrpc.objectives.base import eval_mode
from alrpc.objectives.metrics import check_metrics
from alrpc.rundir import run_name
from alrpc.system import own_arithmetic
from alrpc.training.meters import ExitScores
from alrpc.training.step import autocast

MAY_CHANGE = tuple(
    f"data.{name}"
    for name in (
        *("name", "root", "file", "test_file", "subset", "train_split", "test_split", "test_share"),
        *("text_column", "columns", "label_column", "batch_size", "workers"),
    )
)


def changed_data(run: Path, overrides: Sequence[str], own_data: str | None) -> Config:
    """The configuration of a run, with other data to evaluate it on.

    Args:
        overrides: `data.name=…` and its kin; see MAY_CHANGE.
        own_data: `package.module:function`, if the data come from the user's own function.

    Raises:
        UsageError: for another field, or data of one's own that were not named.
    """
    check_overrides(overrides, MAY_CHANGE, "evaluated")
    config = load_config(config_path(run), [*overrides, *([f"data.name={own_data}"] if own_data else [])])
    check_own_code(run, config, {"data.name": own_data})
    return config


def evaluate(predictor: Predictor, config: Config, exit: int | None = None) -> dict:
    """Evaluate a run on the test split of the data that a configuration names, as the evaluations in training do.

    Args:
        exit: the number of an exit; None for all of them.

    Returns:
        A dictionary for JSON: `run`, `step` (of the checkpoint), `data`, `metric`, `samples`, `chance`, and `exits`: the `exit`, its
        score under the name of the metric, for an accuracy `interval`, the limits of its 95 % interval, and the values of the run's
        `train.metrics` under their names; but for functions of the user's own, which nothing imports here: `not_measured`.

    Raises:
        UserError: for data that cannot be read, or are of another kind than the run's.
    """
    dataset = tested(predictor, config)
    depth, device = predictor.check_exit(exit), next(predictor.parameters()).device
    components = predictor.components[:depth]
    own = [name for name in config.train.metrics if ":" in name]
    metrics = [name for name in config.train.metrics if name not in own]
    check_metrics(metrics, predictor.target, len(dataset.test))
    scores = ExitScores(predictor.objective, [component.exit_parts() for component in components], metrics)
    wanted = evaluation_requests(dataset, "test", config.data.batch_size, 0)
    with own_arithmetic(device, config.threads), eval_mode(predictor), autocast(device, config.precision), torch.no_grad():
        for _, _, tensors, labels in load_micro_batches(dataset, wanted, config.train.seed, config.data.workers):
            tensors, outputs = {name: tensor.to(device) for name, tensor in tensors.items()}, []
            for component in components:
                tensors, output = component.evaluate(tensors)
                outputs.append(output)
            scores.add(outputs, labels.to(device))
    metric, measured = predictor.target.metric, scores.measured() or {}
    return {
        **about(predictor, config, scores.samples),
        "exits": [
            {
                "exit": number,
                metric: score,
                "interval": score_interval(metric, score, scores.samples),
                **{name: values[number - 1] for name, values in measured.items()},
            }
            for number, score in enumerate(scores.mean(), 1)
            if exit in (None, number)
        ],
        **({"not_measured": own} if own else {}),
    }


def about(predictor: Predictor, config: Config, samples: int) -> dict:
    """What an evaluation was of."""
    return {
        "run": run_name(predictor.directory),
        "step": predictor.manifest["step"],
        "data": config.data.name,
        "metric": predictor.target.metric,
        "samples": samples,
        "chance": predictor.target.chance,
    }


def tested(predictor: Predictor, config: Config) -> Dataset:
    """A data set whose test split is that of the evaluation; a run of 0.1 needs the whole data of its training."""
    if "carried" not in predictor.manifest:
        dataset = read_data(config.data, config.train)
        check_trained_on(dataset, predictor.target, config, predictor.manifest)
        return dataset
    test = read_test(config.data, predictor.target, predictor.carried.classes, predictor.carried.preprocessing)
    return Dataset(test, test, predictor.target)
