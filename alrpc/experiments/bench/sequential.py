"""Measures the sequential engine: all components in one process, one after the other, with the resources of one stage."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import torch

from alrpc import rundir
from alrpc.config import Config, load_config
from alrpc.data import read_data
from alrpc.data.loader import epoch_size
from alrpc.experiments.bench.rounds import endless_micro_batches, with_constant_rate
from alrpc.network import begin_network, resolve
from alrpc.objectives.base import Microbatch
from alrpc.pipeline.failures import hard_exit
from alrpc.planning.costs import train_once
from alrpc.reading.documents import SECONDS, read_json
from alrpc.runtime.local import Launch, process_role, run_processes
from alrpc.runtime.process import Process
from alrpc.runtime.run import new_run_directory
from alrpc.runtime.worker import run_logged
from alrpc.system import local_device, synchronize, use_deterministic_kernels
from alrpc.training.optimizer import make_recipe
from alrpc.training.step import make_trainers

WARM = 2  # first steps, which do not count
RESULT = "seconds.json"


def measure_sequential(config: Config, steps: int, directory: Path) -> float:
    """Seconds per micro-batch, measured in a process of its own with a directory made for it.

    Raises:
        UserError: for what the user can put right.
        RunFailed, Interrupted: as `alrpc.runtime.local.run_processes`.
    """
    config, _ = resolve(config)
    with new_run_directory(directory, "bench", config):
        run_processes(Launch(measure, (directory, steps), 1, process_role, silent=True), directory)
    return read_json(directory / RESULT, SECONDS)


def measure(process: Process, directory: Path, steps: int) -> None:
    """Train on `steps` micro-batches and write the seconds per micro-batch; ends the process if it fails."""

    def work() -> None:
        rundir.write_json(directory / RESULT, train(load_config(directory / rundir.CONFIG), steps))

    if code := run_logged(directory, "process-1", work):
        hard_exit(code)


def train(config: Config, steps: int) -> float:
    """Train, and return the seconds per micro-batch."""
    config, device = with_constant_rate(config), local_device(config.device)
    torch.set_num_threads(config.threads)
    use_deterministic_kernels(device)
    dataset = read_data(config.data, config.train)
    recipe = make_recipe(config, epoch_size(dataset, config.data.batch_size, config.train).micro_batches)
    network = begin_network(config, dataset.sample, dataset.target, dataset.word_vectors)
    trainers = make_trainers(network.components, recipe, device)
    began = 0.0
    for step, (tensors, labels) in enumerate(islice(endless_micro_batches(config, dataset), WARM + steps)):
        if step == WARM:
            began = time.perf_counter()
        on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
        train_once(trainers, Microbatch(on_device, network.objective.begin(labels.to(device))), step)
        synchronize(device)
    return (time.perf_counter() - began) / steps
