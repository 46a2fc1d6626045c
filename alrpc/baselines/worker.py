"""One process of a baseline's run, or of sequential associated learning; started by `alrpc compare`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

from alrpc.process import keep_memory, leave, log_line, log_path, log_to, tell_agent, watch_parent

STARTED = float(os.environ.get("ALRPC_STARTED", time.time()))
warnings.filterwarnings("ignore", module="torch.distributed")

if __name__ == "__main__":
    keep_memory()
    watch_parent()  # before the long import of torch

import torch
from torch import distributed

from alrpc.assembly import build_network, local_device, recipe_for, resolve
from alrpc.baselines import loop
from alrpc.baselines.chain import build_chain
from alrpc.baselines.data_parallel import DataParallel
from alrpc.baselines.pipelined import Pipelined
from alrpc.baselines.tuning import fastest, thread_choices
from alrpc.config import Config, load_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset, count_micro_batches
from alrpc.data.loader import read, requests
from alrpc.determinism import ask_for_determinism
from alrpc.errors import UserError
from alrpc.observe.record import recorded, write_summary
from alrpc.run import FAILED, REFUSED, train_in_directory
from alrpc.timing import reset_peak_memory
from alrpc.training.sequential import train_micro_batch
from alrpc.training.update import make_learner


def main(method: str, directory: Path, recorded_steps: tuple[int, int] | None = None) -> None:
    """Do this process' part in a run whose directory holds its configuration; ends the process.

    Args:
        recorded_steps: to warm up with, and to record with torch.profiler; None for a whole run.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    rank = int(os.environ["RANK"])
    name = f"process-{rank + 1}"
    log_to(directory, name)
    try:
        config, _ = resolve(load_config(directory / "config.yaml"))
        if method == "al-sequential":
            run_sequential(config, directory)
        else:
            run(method, config, directory, rank, int(os.environ["WORLD_SIZE"]), recorded_steps)
    except Exception as error:
        log_line(traceback.format_exc())
        refused = isinstance(error, UserError) and rank == 0
        cause = " ".join((str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}").split())
        where = f"process {rank + 1} (rank {rank}, host {socket.gethostname()}) failed: "
        code = REFUSED if refused else FAILED
        tell_agent(cause if refused else f"{where}{cause}; log: {log_path(directory, name)}", code)
        leave(code)
    leave(0)


def run_sequential(config: Config, directory: Path) -> None:
    """Associated learning in one process, with as many threads as make it fastest here."""
    device = local_device(config.device)
    dataset = read_data(config.data)
    threads, seconds = try_threads(config, dataset, device)
    reset_peak_memory(device)
    config = config.model_copy(update={"threads": threads})
    network = build_network(config, dataset.sample, dataset.target, dataset.word_vectors)
    chosen = {"threads": threads, "tried_threads": seconds, "device": str(device)}
    train_in_directory(config, dataset, network, directory, quiet=True, started=STARTED, chosen=chosen)


def try_threads(config: Config, dataset: Dataset, device: torch.device) -> tuple[int, dict[int, float]]:
    """The number of threads that is fastest for a throw-away network, and the seconds of each number."""
    recipe = recipe_for(config, count_micro_batches(dataset.train, config.data.batch_size))
    tensors, labels = read(dataset, recipe.seed, next(requests(dataset, config.data.batch_size, recipe.seed, 1)))
    network = build_network(config, dataset.sample, dataset.target)
    learners = [make_learner(number, component, recipe, device) for number, component in enumerate(network.components, 1)]

    def trial(threads: int) -> None:
        torch.set_num_threads(threads)
        list(train_micro_batch(learners, tensors, dataset.target.represent(labels), 0))

    return fastest(thread_choices(1), trial, device)


def run(method: str, config: Config, directory: Path, rank: int, world: int, recorded_steps: tuple[int, int] | None) -> None:
    """Set the processes up, train and test, or record some steps; the first one writes what is told."""
    device = local_device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    ask_for_determinism(device)
    if world > 1:
        shared = device.type == "cuda" and torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"])
        if shared:
            raise UserError(f"device: {method} needs a GPU for each of its {world} processes; use cpu or fewer stages")
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    everywhere = method in ("bp", "ddp")  # where every process reads its own share
    facts: list = [None]
    dataset = None
    if everywhere or rank == 0:
        dataset = read_data(config.data)
        counts = [count_micro_batches(split, config.data.batch_size) for split in (dataset.train, dataset.test)]
        facts = [(dataset.sample, dataset.target, dataset.word_vectors, counts, len(dataset.test))]
    if world > 1:
        distributed.broadcast_object_list(facts, src=0)
    sample, target, word_vectors, (trains, tests), test_samples = facts[0]
    recipe = recipe_for(config, trains)
    if recorded_steps is not None:  # more may be recorded than the configuration's epochs have
        recipe = replace(recipe, epochs=sum(recorded_steps) + 2 * loop.LEAD, schedule="constant")
    network = build_chain(config, sample, target, word_vectors)
    if everywhere:
        engine = DataParallel(network, rank, world, device, target, recipe)
    else:
        engine = Pipelined(method, network, rank, world, device, target, recipe, config.pipeline.split)
    batches = engine.read(dataset, config.data.batch_size, config.data.workers) if dataset is not None else None
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    places = loop.gather({"components": engine.layers, "device": str(device), "host": socket.gethostname()})
    if recorded_steps is not None:
        train = partial(loop.record, engine, batches, tests, here, *recorded_steps, directory)
    else:
        train = partial(loop.run, engine, batches, tests, test_samples, here)
    if rank > 0:
        train(lambda event: None)
    else:
        with recorded(config, directory, method, world, quiet=True) as (progress, report):
            report({"event": "job", "dataset": dataset, "recipe": recipe})
            for number, place in enumerate(places, 1):
                report({"event": "ready", "stage": number, **place})
            train(report)
        if recorded_steps is None:
            write_summary(directory, progress, time.time() - STARTED)
    if world > 1:
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    numbers = tuple(map(int, sys.argv[3:]))
    main(sys.argv[1], Path(sys.argv[2]), numbers or None)
