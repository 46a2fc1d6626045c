"""The sequential engine: every component in this process, one after the other. The reference that the pipeline equals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from alrpc.component import Step, Tensors
from alrpc.data.dataset import Dataset, count_micro_batches
from alrpc.data.loader import load_micro_batches, requests
from alrpc.determinism import ask_for_determinism
from alrpc.network import Network, evaluating
from alrpc.precision import computing
from alrpc.timing import Timing, peak_memory
from alrpc.training.evaluation import ExitScores
from alrpc.training.losses import LossMeter
from alrpc.training.optimizer import Recipe
from alrpc.training.update import Learner, make_learner, update

STATUS_EVERY = 0.2  # seconds


def train_sequentially(
    learners: list[Learner],
    network: Network,
    dataset: Dataset,
    batch_size: int,
    log_every: int,
    report: Callable[[dict], None],
    workers: int = 0,
    start: int = 0,
    save: Callable[[int, bool], bool] = lambda step, at_epochs_end: False,
) -> None:
    """Train all components of a network in place, evaluating every exit after each epoch.

    Args:
        learners: of all the network's components, which share recipe and device.
        report: called with each event: `losses`, `evaluation`, `stage` (timings of an epoch) and `status` (for a view).
        workers: processes that read micro-batches ahead.
        start: steps that the learners have done already.
        save: called with the number of steps done where a checkpoint may be taken: within an epoch (False), at its end
            (True); returns whether to end there.

    Raises:
        NonFinite: naming component, step and value.
    """
    recipe, device = learners[0].recipe, learners[0].device
    ask_for_determinism(device)
    meters = [LossMeter(learner.number, recipe.nonfinite) for learner in learners]
    timing = Timing()
    timing.moments.watch(device)
    wanted = requests(dataset, batch_size, recipe.seed, recipe.epochs, start)
    micro_batches = load_micro_batches(dataset, wanted, recipe.seed, workers)
    tests = count_micro_batches(dataset.test, batch_size)
    shown = 0.0
    step = start
    for epoch in range(start // recipe.micro_batches, recipe.epochs):
        began = time.perf_counter()
        for tensors, labels in islice(micro_batches, (epoch + 1) * recipe.micro_batches - step):
            timing.begin_packet("train", epoch + 1, step)
            target = network.target.represent(labels)
            for meter, losses in zip(meters, train_micro_batch(learners, tensors, target, step, timing.enter), strict=True):
                meter.add(step, *losses)
            timing.enter("waiting_to_receive")  # for the loader
            step += 1
            if step % log_every == 0:
                _report_losses(meters, epoch, step, report)
            if time.monotonic() - shown > STATUS_EVERY:
                report({"event": "status", "stage": 1, "step": step, "seconds": timing.read()})
                shown = time.monotonic()
            if step % recipe.micro_batches and save(step, False):
                report({"event": "status", "stage": 1, "step": step, "seconds": timing.read()})
                return
        _report_losses(meters, epoch, step, report)
        tell_moments(timing, report, last=epoch + 1 == recipe.epochs)
        report(
            {
                "event": "stage",
                "stage": 1,
                "epoch": epoch + 1,
                "step": step,
                "epoch_seconds": time.perf_counter() - began,
                "seconds": timing.read(),
                "peak_memory": peak_memory(device),
            }
        )
        timing.test(True)
        timing.enter("testing")
        report(evaluate(network, islice(micro_batches, tests), device, recipe.precision, epoch + 1))
        timing.test(False)
        timing.enter("waiting_to_receive")
        if save(step, True):
            break
    report({"event": "status", "stage": 1, "step": step, "seconds": timing.read()})


def tell_moments(timing: Timing, report: Callable[[dict], None], last: bool = False) -> None:
    """Report the blocks of moments that have come together."""
    for block in timing.moments.take(last):
        report({"event": "moments", "stage": 1, **block})


def make_learners(network: Network, recipe: Recipe, device: torch.device) -> list[Learner]:
    """Learners of all a network's components."""
    return [make_learner(number, component, recipe, device) for number, component in enumerate(network.components, 1)]


def train_micro_batch(
    learners: list[Learner],
    tensors: Tensors,
    target: Tensor,
    step: int,
    enter: Callable[[str, int], object] = lambda state, component: None,
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Update all components on one micro-batch; gives what `update` returns for each in turn, and takes what it takes."""
    device = learners[0].device
    target = target.to(device)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    for learner in learners:
        handed_on: list[Step] = []
        yield update(learner, tensors, target, step, handed_on.append, enter)
        tensors, target = handed_on[0].tensors, handed_on[0].target


def evaluate(
    network: Network, micro_batches: Iterator[tuple[Tensors, Tensor]], device: torch.device, precision: str, epoch: int
) -> dict:
    """The `evaluation` event: the score of every exit on the test split's micro-batches."""
    scores = ExitScores(network.target, [component.decoder for component in network.components])
    with evaluating(network), computing(device, precision):
        for tensors, labels in micro_batches:
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            bridged = []
            for component in network.components:
                tensors, output = component.evaluate(tensors)
                bridged.append(output)
            scores.add(bridged, labels.to(device))
    return scores.event(epoch)


def _report_losses(meters: list[LossMeter], epoch: int, step: int, report: Callable[[dict], None]) -> None:
    for meter in meters:
        if event := meter.event(epoch + 1, step):
            report(event)
