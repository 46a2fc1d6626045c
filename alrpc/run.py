"""A run: its directory, and its life in either engine."""

from __future__ import annotations

import shutil
import socket
import time
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TextIO

import torch

from alrpc.assembly import build_network, local_device, make_recipe, recipe_for, resolve
from alrpc.checkpoint import (
    checkpoint_directory,
    empty_sample,
    latest_checkpoint,
    load_component,
    save_component,
    write_manifest,
)
from alrpc.config import Config, Train, load_config, parse_section, save_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset, count_micro_batches
from alrpc.errors import UserError
from alrpc.network import Network, describe_components
from alrpc.observe.record import Report, recorded, write_summary
from alrpc.pipeline.coordinator import coordinate
from alrpc.planning import choose_split
from alrpc.training.optimizer import Recipe
from alrpc.training.sequential import train_sequentially

FAILED, REFUSED = 1, 2  # exit codes of the coordinator; nothing of a refused run is kept


def create_run_directory(out: Path | None, name: str, config: Config) -> Path:
    """Make a run's directory and put the resolved configuration into it.

    Args:
        out: the directory to make; None for runs/<name>-<time>.

    Raises:
        UserError: when it holds something already, or cannot be made.
    """
    path = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        if out is None:
            number = 1
            while path.exists():
                number += 1
                path = path.with_name(f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{number}")
        elif path.is_dir() and any(path.iterdir()):
            raise UserError(f"--out: {path} is not empty; give a directory that does not exist yet")
        path.mkdir(parents=True, exist_ok=True)
        save_config(config, path / "config.yaml")
    except OSError as error:
        raise UserError(f"--out: cannot write to {path}: {error.strerror}; give a directory that can be made") from error
    return path


def discard_run_directory(directory: Path) -> None:
    """Remove what a refused run has written; a directory that something else keeps busy stays, empty."""
    shutil.rmtree(directory, ignore_errors=True)


def own_generators(device: torch.device) -> AbstractContextManager:
    """Leave the caller's random generators as they were."""
    return torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else [])


def run_sequentially(config: Config, name: str, out: Path | None = None, quiet: bool = False) -> tuple[dict, Path]:
    """`alrpc train`: the whole run in this process.

    Returns:
        The summary and the run's directory.

    Raises:
        UserError: for what the user can put right; nothing has been written when it is the configuration or the data.
    """
    started = time.time()
    config, _ = resolve(config)
    local_device(config.device)
    dataset = read_data(config.data)
    network = build_network(config, dataset.sample, dataset.target, dataset.word_vectors)
    directory = create_run_directory(out, name, config)
    return train_in_directory(config, dataset, network, directory, quiet, started), directory


def train_in_directory(
    config: Config, dataset: Dataset, network: Network, directory: Path, quiet: bool, started: float, chosen: dict | None = None
) -> dict:
    """The sequential run of a resolved configuration, in a directory made for it; returns the summary.

    Args:
        chosen: what of the configuration was chosen by trying, for the record.
    """
    device = local_device(config.device)
    torch.set_num_threads(config.threads)
    recipe = recipe_for(config, count_micro_batches(dataset.train, config.data.batch_size))
    checkpoint = checkpoint_directory(directory, recipe.epochs * recipe.micro_batches)
    numbers = list(range(1, len(network.components) + 1))
    with recorded(config, directory, "sequential", 1, quiet) as (progress, report):
        report({"event": "job", "dataset": dataset, "recipe": recipe})
        report({"event": "ready", "stage": 1, "components": numbers, "device": str(device), "host": socket.gethostname()})
        if chosen:
            report({"event": "chosen", **chosen})
        report({"event": "start"})
        with own_generators(device):
            train_sequentially(
                network, dataset, config.data.batch_size, recipe, device, config.train.log_every, report, config.data.workers
            )
        for number, component in enumerate(network.components, 1):
            save_component(checkpoint, number, component)
        report({"event": "finished", "stage": 1, **describe_components(network.components, True, device)})
    write_manifest(checkpoint, len(numbers), dataset.sample, dataset.target)
    return write_summary(directory, progress, time.time() - started)


def run_coordinator(config: Config, components: int, directory: Path, quiet: bool, stdout: TextIO, started: float) -> dict:
    """The coordinator's part of a pipeline's run, in rank 0, of a resolved configuration; returns the summary.

    Raises:
        StageFailed: naming the stage and the cause.
        UserError: for what the user can put right.
    """
    datasets: list[Dataset] = []

    def load() -> tuple[Dataset, Recipe, list[int] | None]:
        dataset = read_data(config.data)
        datasets.append(dataset)
        recipe = recipe_for(config, count_micro_batches(dataset.train, config.data.batch_size))
        return dataset, recipe, choose_split(config, dataset)

    with recorded(config, directory, "pipeline", config.pipeline.stages, quiet, stdout) as (progress, report):
        coordinate(config, components, load, directory, report)
    checkpoint = checkpoint_directory(directory, progress.steps)
    write_manifest(checkpoint, components, datasets[0].sample, datasets[0].target)
    return write_summary(directory, progress, time.time() - started)


def train(
    network: Network, dataset: Dataset, *, batch_size: int = 64, device: str = "auto", report: Report | None = None, **fields
) -> list[float]:
    """Train a network in this process, in place.

    Args:
        batch_size: samples in a micro-batch.
        device: auto, cpu or cuda.
        report: called with every event (losses, evaluations, timings), a dict each.
        fields: of the configuration's section `train`: epochs, lr, optimizer, seed, …; see `alrpc.config.Train`.

    Returns:
        The last evaluation's score of each exit: accuracy, or mean squared error for a regression.

    Raises:
        UserError: for an unknown or impossible field, or a loss that is not finite.
    """
    settings = parse_section(Train, "train", fields)
    recipe = make_recipe(settings, count_micro_batches(dataset.train, batch_size))
    exits: list[float] = []

    def listen(event: dict) -> None:
        if event["event"] == "evaluation":
            exits[:] = event["exits"]
        if report is not None:
            report(event)

    where = local_device(device)
    with own_generators(where):
        train_sequentially(network, dataset, batch_size, recipe, where, settings.log_every, listen)
    return exits


def load_run(directory: Path | str, model: str | None = None) -> Network:
    """The trained network of a run, from its directory.

    Args:
        model: needed when the run's blocks come from a function of one's own: its `package.module:function`. Code is
            imported on the caller's word, never on a file's.

    Raises:
        UserError: naming the file that is missing or does not fit.
    """
    directory = Path(directory)
    config = load_config(directory / "config.yaml")
    if ":" in config.model.name and config.model.name != model:
        raise UserError(
            f"{directory}: its blocks come from {config.model.name}; pass model={config.model.name!r} to import that"
        )
    checkpoint, manifest = latest_checkpoint(directory)
    network = build_network(config, empty_sample(manifest), manifest["target"])
    for number, component in enumerate(network.components, 1):
        load_component(checkpoint, number, component)
    return network.eval()
