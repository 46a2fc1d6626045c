"""A process of a baseline, or of the sequential engine; started by `alrpc compare` and `alrpc profile`."""

from __future__ import annotations

import os
import socket
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import distributed

from alrpc import rundir
from alrpc.analysis.timeline import draw_run
from alrpc.config import Config, load_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset
from alrpc.data.loader import epoch_size, evaluated_split, read, requests
from alrpc.errors import FAILED, REFUSED, UserError, error_line, exit_code
from alrpc.events import Job, Ready
from alrpc.experiments.baselines import ASYNCHRONOUS, loop
from alrpc.experiments.baselines.asynchronous import Asynchronous
from alrpc.experiments.baselines.data_parallel import DataParallel
from alrpc.experiments.baselines.engine import Role
from alrpc.experiments.baselines.model import build_sequential_model
from alrpc.experiments.baselines.pipelined import Pipelined
from alrpc.experiments.baselines.tuning import fastest, thread_choices
from alrpc.network import begin_network, build_network, resolve
from alrpc.objectives.base import Microbatch
from alrpc.pipeline.failures import NEIGHBOUR_EXIT_DELAY, PeerLost, hard_exit, log_line, write_error_file
from alrpc.pipeline.groups import join_group
from alrpc.planning.costs import train_once
from alrpc.runtime.process import Process, log_to
from alrpc.runtime.run import Run, train_in_directory
from alrpc.system import local_device, reset_peak_memory, use_deterministic_kernels
from alrpc.telemetry.recorder import recorder, write_summary
from alrpc.training.optimizer import make_recipe
from alrpc.training.step import make_trainers


def run_method(process: Process, method: str, directory: Path, recorded_steps: tuple[int, int] | None = None) -> None:
    """Run this process' rank in a run whose directory holds its configuration; ends the process if it fails.

    Args:
        recorded_steps: steps to warm up with, and steps to record with torch.profiler; None for a whole run.
    """
    rank = int(os.environ["RANK"])
    name = f"process-{rank + 1}"
    log_to(directory, name)
    try:
        config, components = resolve(load_config(directory / rundir.CONFIG))
        if method == "al-sequential":
            run_sequential(Run(config, components, directory, process.started, quiet=True))
        else:
            run_baseline(method, config, directory, process.started, recorded_steps)
    except (Exception, SystemExit) as error:
        log_line(traceback.format_exc())
        if is_of_peer(error):
            time.sleep(NEIGHBOUR_EXIT_DELAY)  # the launcher names the process that failed, and ends this one
        message, code = error_line(error), FAILED if rank else exit_code(error)
        if code != REFUSED:
            log = rundir.log_path(directory, name)
            message = f"process {rank + 1} (rank {rank}, host {socket.gethostname()}) failed: {message}; log: {log}"
        write_error_file(message, code)
        hard_exit(code)


def is_of_peer(error: BaseException) -> bool:
    """Whether an error is that another process is lost, in this engine's links or in torch's own engines over gloo or NCCL."""
    by_torch = isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "by peer" in str(error))
    return by_torch or isinstance(error, PeerLost)


def run_sequential(run: Run) -> None:
    """Run the sequential engine, with the number of threads that is fastest here."""
    config = run.config
    device = local_device(config.device)
    dataset = read_data(config.data, config.train)
    threads, seconds = try_threads(config, dataset, device)
    reset_peak_memory(device)
    config = config.model_copy(update={"threads": threads})
    network = begin_network(config, dataset.sample, dataset.target, dataset.word_vectors)
    chosen = {"threads": threads, "tried_threads": seconds, "device": str(device)}
    train_in_directory(replace(run, config=config), dataset, network, chosen)


def try_threads(config: Config, dataset: Dataset, device: torch.device) -> tuple[int, dict[int, float]]:
    """The number of threads that is fastest for a throw-away network, and the seconds of each number."""
    recipe = make_recipe(config, epoch_size(dataset, config.data.batch_size, config.train).micro_batches)
    request = next(requests(dataset, config.data.batch_size, config.train))
    _, _, tensors, labels = read(dataset, config.train.seed, request)
    network = build_network(config, dataset.sample, dataset.target)
    trainers = make_trainers(network.components, recipe, device)
    on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
    batch = Microbatch(on_device, network.objective.begin(labels.to(device)))

    def trial(threads: int) -> None:
        torch.set_num_threads(threads)
        train_once(trainers, batch)

    return fastest(thread_choices(1), trial, device)


def run_baseline(method: str, config: Config, directory: Path, started: float, recorded_steps: tuple[int, int] | None) -> None:
    """Set up this process, then train and evaluate, or record some steps; the first process writes the run's files."""
    rank, world, here = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    device = own_device(method, config, world)
    if world > 1:
        join_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    everywhere = method in ("bp", "ddp")  # whether every process reads its own share
    facts: list = [None]
    dataset = None
    if everywhere or rank == 0:
        dataset = read_data(config.data, config.train)
        size = epoch_size(dataset, config.data.batch_size, config.train, throughout=True)
        splits = [loop.evaluated(dataset, split, config.data.batch_size) for split in (evaluated_split(dataset), "test")]
        facts = [(dataset.sample, dataset.target, dataset.word_vectors, size, splits)]
    if world > 1:
        distributed.broadcast_object_list(facts, src=0)
    sample, target, word_vectors, size, (of_epoch, of_end) = facts[0]
    if recorded_steps is not None:  # the steps may exceed the configured epochs; one epoch per step is enough
        more = {"epochs": sum(recorded_steps) + 2 * loop.LEAD, "schedule": "constant"}
        config = config.model_copy(update={"train": config.train.model_copy(update=more)})
    recipe = make_recipe(config, size.micro_batches)
    model = build_sequential_model(config, sample, target, word_vectors)
    kind = DataParallel if everywhere else Asynchronous if method in ASYNCHRONOUS else Pipelined
    engine = kind(Role(method, rank, world, device, target, recipe, config.pipeline.split), model)
    batches = tests = None
    if dataset is not None:
        batches, tests = (engine.read(dataset, config.data.batch_size, config.data.workers, only) for only in (None, "test"))
    if recorded_steps is not None:
        train = partial(loop.record, engine, batches, of_epoch, here, *recorded_steps, directory)
    else:
        train = partial(loop.run, engine, batches, tests, of_epoch, of_end, config.checkpoint.best, here)
    places = loop.gather(Ready(0, engine.layers, str(device), socket.gethostname()))
    if rank > 0:
        train(lambda event: None)
    else:
        with recorder(config, directory, method, world, quiet=True, draw_timeline=draw_run) as (progress, emit):
            validated = of_epoch.samples if of_epoch.split == "validation" else None
            emit(Job(size.samples, size.micro_batches, 0, None, of_end.samples, validated))
            for number, place in enumerate(places, 1):
                emit(replace(place, stage=number))
            train(emit)
        if recorded_steps is None:
            write_summary(directory, progress, started)
    engine.close()
    if world > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def own_device(method: str, config: Config, world: int) -> torch.device:
    """Choose this process' device and set it up.

    Raises:
        UserError: when several processes would share a GPU.
    """
    device = local_device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        if world > 1 and torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
            raise UserError(f"device: {method} needs a GPU for each of its {world} processes; use cpu or fewer stages")
    use_deterministic_kernels(device)
    return device
