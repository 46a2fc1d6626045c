"""The coordinator, rank 0: feeds the stream of packets, and listens to what the stages report."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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
from alrpc.pipeline.clocks import Clocks
from alrpc.pipeline.health import Feeding, Health
from alrpc.pipeline.mailbox import Plan, Resume
from alrpc.pipeline.packet import Packet
from alrpc.pipeline.topology import Place, choose_devices, describe_transport, split_components
from alrpc.timing import Timing, peak_memory
from alrpc.training.optimizer import Recipe

PATIENCE = 0.5  # seconds that a stage may wait for something to tell: a question is always under way, so a death shows at once
COMPARE = 0.5  # seconds between a reported failure and its message, for failures of earlier stages
PRUNING = 60.0  # seconds that a stage may take to remove files
GRACE = 3.0  # seconds between a lost connection and its report: whoever knows the cause speaks first

Load = Callable[[], tuple[Dataset, Recipe, list[int] | None]]
Stream = Callable[[Config, Dataset, Recipe], Iterator[Packet]]


class StageFailed(UserError):
    """A process of the run raised, was killed, is gone or hangs; the message says which, where, why, and where its log is."""

    def __init__(self, message: str, again: bool = True):
        super().__init__(message)
        self.again = again
        """Whether it may go better another time."""
        self.places: list[Place] = []
        """Of the stages that are left to be ended."""


def describe_failure(place: Place, cause: str, packet: str) -> str:
    who = f"stage {place.stage} (rank {place.stage}, host {place.host})"
    return f"{who} {cause}; last packet: {packet}; log: {place.log}"


def coordinate(
    config: Config,
    components: int,
    load: Load,
    directory: Path,
    report: Callable[[dict], None],
    stream: Stream | None = None,
    resume: Resume | None = None,
    stopping: Callable[[], bool] = lambda: False,
    feeding: Feeding | None = None,
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
        stopping: whether the run is to take a checkpoint and end before its end; asked after each micro-batch.
        feeding: to note in what the feeding thread does; None for one of its own.

    Raises:
        StageFailed: naming the process and the cause.
        UserError: when the data cannot be read, or the devices asked for are not there.
    """
    stages = config.pipeline.stages
    control.join(0, stages + 1)
    places = [control.call(stage, mailbox.describe) for stage in range(1, stages + 1)]
    feeding = feeding or Feeding()
    if stream is None:

        def stream(config: Config, dataset: Dataset, recipe: Recipe) -> Iterator[Packet]:
            return stream_training(config, dataset, recipe, start_of(resume), feeding, stopping)

    fed = ThreadPoolExecutor(1, "feed").submit(
        feed, config, components, places, load, directory, report, stream, resume, feeding
    )
    health = Health(places, feeding, config.health.timeout)
    try:
        listen(fed, report, health)
    except StageFailed as error:
        error.places = places
        raise
    report({"event": "coordinator", "peak_memory": peak_memory(torch.device("cpu"))})
    try:
        for place in places:
            control.call(place.stage, mailbox.dismiss, patience=health.limit)
    except control.StageLost as error:
        time.sleep(GRACE)  # the launcher may know the cause; then it ends this process first
        raise failure_of(health, error.stage, str(error)) from error
    close_data_plane()
    control.leave(health.limit)


def failure_of(health: Health, stage: int, cause: str, again: bool = True) -> StageFailed:
    """What is raised for a stage."""
    return StageFailed(describe_failure(health.places[stage - 1], cause, health.last_packet(stage)), again)


def start_of(resume: Resume | None) -> int:
    """Steps that have been done when a run begins."""
    return resume.step if resume is not None else 0


def stream_training(
    config: Config,
    dataset: Dataset,
    recipe: Recipe,
    start: int = 0,
    feeding: Feeding | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Packet]:
    """All packets of a run, in order, from its step `start` on; checkpoints at an epoch's end come after its evaluation.

    Once `stopping` says so, between two micro-batches of training, a checkpoint and the end follow.
    """
    wanted = requests(dataset, config.data.batch_size, recipe.seed, recipe.epochs, start)
    micro_batches = (feeding or Feeding()).watch(load_micro_batches(dataset, wanted, recipe.seed, config.data.workers))
    tests = count_micro_batches(dataset.test, config.data.batch_size)
    due = due_at(config.checkpoint)
    step = start
    for epoch in range(start // recipe.micro_batches + 1, recipe.epochs + 1):
        for tensors, labels in islice(micro_batches, epoch * recipe.micro_batches - step):
            yield Packet("train", epoch, step, {**tensors, "label": labels})
            step += 1
            stop = stopping()
            if step % recipe.micro_batches and (due(step) or stop):
                yield Packet("checkpoint", epoch, step)
                if stop:
                    yield Packet("end", epoch, step)
                    return
        yield Packet("epoch", epoch, step)
        yield Packet("evaluate", epoch, step)
        for tensors, labels in islice(micro_batches, tests):
            yield Packet("test", epoch, step, {**tensors, "label": labels})
        yield Packet("evaluated", epoch, step)
        stop = stopping()
        if due(step) or config.checkpoint.epoch or stop or epoch == recipe.epochs:
            yield Packet("checkpoint", epoch, step)
        if stop:
            break
    yield Packet("end", epoch, step)


def feed(
    config: Config,
    components: int,
    places: list[Place],
    load: Load,
    directory: Path,
    report: Callable[[dict], None],
    stream: Stream,
    resume: Resume | None,
    feeding: Feeding,
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
    host = socket.gethostname()
    split = split_components(components, len(places), sizes)
    for place, numbers, device in zip(places, split, devices, strict=True):
        vectors = dataset.word_vectors if numbers[0] == 1 else None
        plan = Plan(
            config,
            dataset.sample,
            dataset.target,
            recipe,
            numbers,
            vectors,
            len(places),
            device,
            transport,
            directory,
            (host, os.getpid()),
            resume,
        )
        control.call(place.stage, mailbox.set_up, plan)
    cpu = torch.device("cpu")
    open_data_plane(0, len(places), transport, cpu)
    report({"event": "start"})
    timing = feeding.timing
    sender = Sender(Link(1, cpu), config.pipeline.window, timing)
    timing.enter("waiting_to_receive")  # for the loader
    try:
        for packet in stream(config, dataset, recipe):
            timing.begin_packet(packet.kind, packet.epoch, packet.step)
            sender.send(packet)
            feeding.sent += 1
            timing.enter("waiting_to_receive")
            tell_moments(timing, report)
        sender.drain()
        tell_moments(timing, report, last=True)
    except UserError as error:  # in the middle of a run, of which everything stays
        raise StageFailed(f"the coordinator (rank 0, host {host}) cannot go on: {error}", again=False) from error


def prune_on_every_host(stages: int, step: int, kept: list[int]) -> None:
    """Have each stage remove, from its host's disk, what was written of checkpoints before a step that are not kept.

    Nobody waits for it: a stage that is gone or frozen must not hold up the end of the run.
    """
    with suppress(control.StageLost):
        for stage in range(1, stages + 1):
            control.Call(stage, mailbox.prune, step, kept, patience=PRUNING)


def tell_moments(timing: Timing, report: Callable[[dict], None], last: bool = False) -> None:
    """Report the coordinator's own blocks of moments."""
    for block in timing.moments.take(last):
        report({"event": "moments", "stage": 0, **block})


def listen(fed: Future, report: Callable[[dict], None], health: Health) -> None:
    """Poll every stage until all have finished.

    Raises:
        StageFailed: when a stage says that it failed, or does not answer and nobody has said why, or the run does not move.
    """
    stages = range(1, len(health.places) + 1)
    finished: set[int] = set()
    calls: dict[int, control.Call] = {}
    lost: dict[int, tuple[float, str]] = {}
    failed: dict[int, tuple[float, dict]] = {}
    severed: tuple[float, str] | None = None
    clocks = Clocks(len(health.places))
    while len(finished) < len(stages):
        for stage in stages:  # those that have finished too: a stage that is not called takes the coordinator for lost
            if stage in lost:
                continue
            try:
                if stage not in calls:
                    calls[stage] = control.Call(stage, mailbox.poll, PATIENCE, patience=health.limit)
                if calls[stage].ended is None:
                    continue
                events = calls.pop(stage).result()
            except control.StageLost as error:
                lost[stage] = (error.when, str(error))
                continue
            for event in events:
                if event["event"] == "failure":
                    failed[stage] = (time.monotonic(), event)
                    continue
                if event["event"] == "status":
                    health.hear(event, time.monotonic())
                    event["in_flight"] = max(0, health.sent_to(stage) - event["received"])
                if event["event"] == "finished":
                    finished.add(stage)
                report(event)
        for event in clocks.listen(health.limit):
            report(event)
        # Values that are not finite are seen by later stages too: the earliest stage is the one to name.
        if failed and time.monotonic() - min(since for since, _ in failed.values()) > COMPARE:
            stage = min(failed)
            event = failed[stage][1]
            raise failure_of(health, stage, f"failed: {event['cause']}", event["again"])
        error = fed.exception() if fed.done() else None
        if isinstance(error, PeerLost):
            severed = severed or (time.monotonic(), f"is gone: {error}")
        elif isinstance(error, control.StageLost):
            lost.setdefault(error.stage, (error.when, str(error)))
        elif error is not None:
            raise error
        # The stage that was lost first is the one to name; the one next to the coordinator if all still answer.
        suspects = lost or ({1: severed} if severed else {})
        if suspects:
            stage, (since, reason) = min(suspects.items(), key=lambda item: item[1][0])
            is_silent = reason.startswith(control.SILENT)  # then nobody knows more, and all of a host fall silent at once
            if is_silent:
                stage = min(number for number, (_, other) in suspects.items() if other.startswith(control.SILENT))
            if time.monotonic() - since > (COMPARE if is_silent else GRACE):
                raise failure_of(health, stage, reason)
        elif not failed:
            check_movement(health, report)
        time.sleep(0.05)


def check_movement(health: Health, report: Callable[[dict], None]) -> None:
    """Name slow stages; raises StageFailed when the run waits for what does not come."""
    for event in health.slow_stages():
        report(event)
    if trouble := health.loader_trouble(time.monotonic()):
        raise StageFailed(f"the coordinator (rank 0, host {socket.gethostname()}) hangs: {trouble}")
    if broken := health.link_trouble():
        raise failure_of(health, *broken)
