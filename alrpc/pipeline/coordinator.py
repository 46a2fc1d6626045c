"""The coordinator, rank 0: feeds the stream of packets, and listens to what the stages report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from alrpc.checkpoint import due_at
from alrpc.config import Config
from alrpc.data.dataset import Dataset, count_micro_batches
from alrpc.data.loader import load_micro_batches, requests
from alrpc.errors import UserError
from alrpc.pipeline import control, mailbox
from alrpc.pipeline.channel import Link, PeerLost, Sender, close_data_plane, open_data_plane
from alrpc.pipeline.mailbox import Plan, Resume
from alrpc.pipeline.packet import Packet
from alrpc.pipeline.topology import Place, choose_devices, describe_transport, split_components
from alrpc.timing import peak_memory
from alrpc.training.optimizer import Recipe

PATIENCE = 0.2  # seconds that a stage may wait for something to tell: a question is always under way, so a death shows at once
COMPARE = 0.5  # seconds between a reported failure and its message, for failures of earlier stages
GRACE = 3.0  # seconds between a lost connection and its report: whoever knows the cause speaks first

Load = Callable[[], tuple[Dataset, Recipe, list[int] | None]]
Stream = Callable[[Config, Dataset, Recipe], Iterator[Packet]]


class StageFailed(UserError):
    """A stage raised, was killed or is gone; the message says which, where, why, and where its log is."""


def describe_failure(place: Place, cause: str) -> str:
    return f"stage {place.stage} (rank {place.stage}, host {place.host}) {cause}; log: {place.log}"


def coordinate(
    config: Config,
    components: int,
    load: Load,
    directory: Path,
    report: Callable[[dict], None],
    stream: Stream | None = None,
    resume: Resume | None = None,
) -> None:
    """Run the pipeline from set-up to end.

    Args:
        components: how many the network has.
        load: reads the data set; gives it, how to learn, and the components of each stage (None for an even split). Called once
            the stages are there, so that they start meanwhile.
        directory: the run's; each stage writes its log and its checkpoints below it, on its own host.
        report: called with each event that a stage tells, and with `job` when the data is there.
        stream: (configuration, data set, recipe) -> the packets to feed, in order; None for those of training.
        resume: the checkpoint to go on from; None to begin.

    Raises:
        StageFailed: naming the stage and the cause.
        UserError: when the data cannot be read, or the devices asked for are not there.
    """
    stages = config.pipeline.stages
    control.join(0, stages + 1)
    places = [control.call(stage, mailbox.describe) for stage in range(1, stages + 1)]
    stream = stream or partial(stream_training, start=start_of(resume))
    feeding = ThreadPoolExecutor(1, "feed").submit(feed, config, components, places, load, directory, report, stream, resume)
    listen(places, feeding, report)
    report({"event": "coordinator", "peak_memory": peak_memory(torch.device("cpu"))})
    try:
        for place in places:
            control.call(place.stage, mailbox.dismiss)
    except control.StageLost as error:
        time.sleep(GRACE)  # the launcher may know the cause; then it ends this process first
        raise StageFailed(describe_failure(places[error.stage - 1], f"is gone: {error}")) from error
    close_data_plane()
    control.leave()


def start_of(resume: Resume | None) -> int:
    """Steps that have been done when a run begins."""
    return resume.step if resume is not None else 0


def stream_training(config: Config, dataset: Dataset, recipe: Recipe, start: int = 0) -> Iterator[Packet]:
    """All packets of a run, in order, from its step `start` on; checkpoints at an epoch's end come after its evaluation."""
    wanted = requests(dataset, config.data.batch_size, recipe.seed, recipe.epochs, start)
    micro_batches = load_micro_batches(dataset, wanted, recipe.seed, config.data.workers)
    tests = count_micro_batches(dataset.test, config.data.batch_size)
    due = due_at(config.checkpoint)
    step = start
    for epoch in range(start // recipe.micro_batches + 1, recipe.epochs + 1):
        for tensors, labels in islice(micro_batches, epoch * recipe.micro_batches - step):
            yield Packet("train", epoch, step, {**tensors, "label": labels})
            step += 1
            if step % recipe.micro_batches and due(step):
                yield Packet("checkpoint", epoch, step)
        yield Packet("epoch", epoch, step)
        yield Packet("evaluate", epoch, step)
        for tensors, labels in islice(micro_batches, tests):
            yield Packet("test", epoch, step, {**tensors, "label": labels})
        yield Packet("evaluated", epoch, step)
        if due(step) or config.checkpoint.epoch or epoch == recipe.epochs:
            yield Packet("checkpoint", epoch, step)
    yield Packet("end", recipe.epochs, step)


def feed(
    config: Config,
    components: int,
    places: list[Place],
    load: Load,
    directory: Path,
    report: Callable[[dict], None],
    stream: Stream,
    resume: Resume | None,
) -> None:
    """Load, tell every stage its plan, then send the whole stream to stage 1, as far ahead as the window allows."""
    devices, transport = choose_devices(places, config.device)
    dataset, recipe, sizes = load()
    report(
        {
            "event": "job",
            "dataset": dataset,
            "recipe": recipe,
            "start": start_of(resume),
            "packets": describe_transport(places, devices, transport),
        }
    )
    split = split_components(components, len(places), sizes)
    for place, numbers, device in zip(places, split, devices, strict=True):
        vectors = dataset.word_vectors if numbers[0] == 1 else None
        plan = Plan(
            config, dataset.sample, dataset.target, recipe, numbers, vectors, len(places), device, transport, directory, resume
        )
        control.call(place.stage, mailbox.set_up, plan)
    cpu = torch.device("cpu")
    open_data_plane(0, len(places), transport, cpu)
    report({"event": "start"})
    sender = Sender(Link(1, cpu), config.pipeline.window)
    for packet in stream(config, dataset, recipe):
        sender.send(packet)
    sender.drain()


def listen(places: list[Place], feeding: Future, report: Callable[[dict], None]) -> None:
    """Poll every stage until all have finished.

    Raises:
        StageFailed: when a stage says that it failed, or does not answer and nobody has said why.
    """
    stages = range(1, len(places) + 1)
    finished: set[int] = set()
    calls: dict[int, control.Call] = {}
    lost: dict[int, tuple[float, str]] = {}
    failed: dict[int, tuple[float, str]] = {}
    severed: tuple[float, str] | None = None
    while len(finished) < len(places):
        for stage in stages:  # those that have finished too: a stage that is not called takes the coordinator for lost
            if stage in lost:
                continue
            try:
                if stage not in calls:
                    calls[stage] = control.Call(stage, mailbox.poll, PATIENCE)
                if calls[stage].ended is None:
                    continue
                events = calls.pop(stage).result()
            except control.StageLost as error:
                lost[stage] = (error.when, str(error))
                continue
            for event in events:
                if event["event"] == "failure":
                    failed[stage] = (time.monotonic(), event["cause"])
                    continue
                if event["event"] == "finished":
                    finished.add(stage)
                report(event)
        # Values that are not finite are seen by later stages too: the earliest stage is the one to name.
        if failed and time.monotonic() - min(since for since, _ in failed.values()) > COMPARE:
            stage = min(failed)
            raise StageFailed(describe_failure(places[stage - 1], f"failed: {failed[stage][1]}"))
        error = feeding.exception() if feeding.done() else None
        if isinstance(error, PeerLost):
            severed = severed or (time.monotonic(), str(error))
        elif isinstance(error, control.StageLost):
            lost.setdefault(error.stage, (error.when, str(error)))
        elif error is not None:
            raise error
        # The stage that was lost first is the one to name; the one next to the coordinator if all still answer.
        suspects = lost or ({1: severed} if severed else {})
        if suspects:
            stage, (since, reason) = min(suspects.items(), key=lambda item: item[1][0])
            if time.monotonic() - since > GRACE:
                raise StageFailed(describe_failure(places[stage - 1], f"is gone: {reason}"))
        time.sleep(0.02)
