"""The sequential engine measured: every component in one process, one after the other, on one stage's resources."""

from __future__ import annotations

import json
import sys
import time
import traceback
from itertools import islice
from pathlib import Path

from alrpc.agent import listening_socket, process_role, run_processes
from alrpc.process import keep_memory, leave, log_line, log_to, tell_agent, watch_parent

if __name__ == "__main__":
    keep_memory()
    watch_parent()

import torch

from alrpc.assembly import build_network, local_device, resolve
from alrpc.bench.rounds import endless_micro_batches, recipe_of
from alrpc.config import Config, load_config
from alrpc.data import read_data
from alrpc.determinism import ask_for_determinism
from alrpc.errors import UserError
from alrpc.run import FAILED, REFUSED, create_run_directory
from alrpc.training.sequential import train_micro_batch
from alrpc.training.update import make_learner

WARM = 2  # steps that do not count
RESULT = "seconds.json"


def measure_alone(config: Config, steps: int, directory: Path) -> float:
    """Seconds that a micro-batch takes, in a process of its own with a directory made for it.

    Raises:
        UserError: for what the user can put right.
        RunFailed, Interrupted: as `alrpc.agent.run_processes`.
    """
    config, _ = resolve(config)
    create_run_directory(directory, "bench", config)
    with listening_socket(0) as listener:
        run_processes(["alrpc.bench.alone", str(directory), str(steps)], 1, directory, listener, process_role, silent=True)
    return json.loads((directory / RESULT).read_text(encoding="utf-8"))


def main(directory: Path, steps: int) -> None:
    """Train so many micro-batches and write what one takes; ends the process."""
    log_to(directory, "process-1")
    try:
        seconds = train(load_config(directory / "config.yaml"), steps)
        (directory / RESULT).write_text(json.dumps(seconds), encoding="utf-8")
    except Exception as error:
        log_line(traceback.format_exc())
        refused = isinstance(error, UserError)
        code = REFUSED if refused else FAILED
        tell_agent(str(error) if refused else " ".join(f"{type(error).__name__}: {error}".split()), code)
        leave(code)
    leave(0)


def train(config: Config, steps: int) -> float:
    device = local_device(config.device)
    torch.set_num_threads(config.threads)
    ask_for_determinism(device)
    dataset = read_data(config.data)
    recipe = recipe_of(config, dataset)
    network = build_network(config, dataset.sample, dataset.target, dataset.word_vectors)
    learners = [make_learner(number, component, recipe, device) for number, component in enumerate(network.components, 1)]
    began = 0.0
    for step, (tensors, labels) in enumerate(islice(endless_micro_batches(config, dataset, recipe.seed), WARM + steps)):
        if step == WARM:
            began = time.perf_counter()
        for associated, autoencoder, _ in train_micro_batch(learners, tensors, dataset.target.represent(labels), step):
            (associated + autoencoder).item()  # as a meter would: on a GPU, when its work is done
    return (time.perf_counter() - began) / steps


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
