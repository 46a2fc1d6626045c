"""The processes of the pipeline from join to leave: a stage's process, and the coordinator's.

coordinator   joins ─ collects placements ─ feeds (in a thread) and monitors ─ dismisses the stages ─ leaves
stage         joins ─ waits for its spec ─ builds ─ processes the stream ─ waits for dismissal ─ leaves
"""

from __future__ import annotations

import functools
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from alrpc.checkpoint.files import load_trainers
from alrpc.checkpoint.resume import ResumePoint
from alrpc.checkpoint.saver import Saver
from alrpc.config import Config
from alrpc.errors import FAILED, StageFailed, UserError, error_line
from alrpc.events import Coordinator, Event, Failure, Ready
from alrpc.network import Network, begin_network, build_network
from alrpc.pipeline import endpoint, rpc
from alrpc.pipeline.cause import tell_cause
from alrpc.pipeline.endpoint import Greeting, StageSpec
from alrpc.pipeline.failures import (
    BLAME_DELAY,
    EXIT_DELAY,
    NEIGHBOUR_EXIT_DELAY,
    PRUNE_TIMEOUT,
    READERS_TIMEOUT,
    Disconnected,
    PeerLost,
    StageLost,
    log_line,
    silence_limit,
    write_error_file,
)
from alrpc.pipeline.feeder import FeedStatus, Load, Stream, feed
from alrpc.pipeline.groups import close_data_plane, links_between, open_data_plane
from alrpc.pipeline.link import Link, Receiver, Sender
from alrpc.pipeline.liveness import Watch
from alrpc.pipeline.monitor import Health, await_answers, failure_of, monitor
from alrpc.pipeline.placement import Placement, choose_cores, set_device
from alrpc.pipeline.wire import CPU
from alrpc.system import peak_memory
from alrpc.timing import Timing
from alrpc.training.batch_norm import single_samples_told
from alrpc.training.optimizer import make_recipe
from alrpc.training.packet import Kind, Packet
from alrpc.training.stage import Stage

MakeStage = Callable[..., Stage]
"""A function with the arguments of `Stage` that makes a stage."""


def run_stage(
    placement: Placement,
    world_size: int,
    on_terminate: Callable[[Callable[[], float]], None] = lambda ask: None,
    make: MakeStage = Stage,
) -> int:
    """Run a stage until the end of the run; returns the process' exit code.

    Args:
        on_terminate: receives the function to call on SIGTERM, which returns the seconds until the process must end.
        make: makes the stage.
    """
    own = endpoint.endpoint
    own.placement = placement
    on_terminate(own.ask_to_end)
    try:
        rpc.join(placement.stage, world_size)
        own.watch_coordinator()
        spec = own.await_spec()
        device = set_device(spec.device, spec.config.threads)
        if spec.resume is None:
            network = begin_network(spec.config, spec.sample, spec.target, spec.word_vectors)
        else:
            network = build_network(spec.config, spec.sample, spec.target)
        own.emit(Ready(placement.stage, spec.components, spec.device, placement.host, placement.pid))
        work_through(placement, spec, network, device, make)
        own.dismissed.wait()
        close_data_plane()
        own.left = (
            True  # what follows has a limit of its own, and then the coordinator has the checkpoint and the summary to write
        )
        rpc.leave()
    except (PeerLost, Disconnected) as error:
        log_line(f"stage {placement.stage}: {error}")
        if not own.told_to_end:
            time.sleep(NEIGHBOUR_EXIT_DELAY)  # the coordinator or launcher names the failed process, and ends this one
            message = f"stage {placement.stage} (rank {placement.stage}, host {placement.host}): {error}; log: {placement.log}"
            write_error_file(message, FAILED)
            tell_cause(message)
        return 1
    except (Exception, SystemExit) as error:
        report_failure(placement.stage, error)
        time.sleep(EXIT_DELAY)
        return 1
    return 0


def report_failure(stage: int, error: BaseException) -> None:
    """Tell the coordinator, and this stage's log, of an exception for which the stage cannot go on; from any thread."""
    log_line("".join(traceback.format_exception(error)))
    endpoint.endpoint.emit(Failure(stage, error_line(error), retryable=not isinstance(error, (UserError, SystemExit))))


def work_through(placement: Placement, spec: StageSpec, network: Network, device: torch.device, make: MakeStage) -> None:
    """Connect to the neighbours, make the stage, and process the stream until its end.

    The links back have a window of the feedback's delay, with which no stage ever waits to send back: docs/failures.md.
    """
    number, emit, timing = placement.stage, endpoint.endpoint.emit, Timing()
    window, delay = spec.config.pipeline.window, network.objective.delay
    groups = open_data_plane(number, links_between(spec.stages, delay > 0), spec.transport, device)
    is_last = number == spec.stages

    def link(origin: int, goal: int) -> Link:
        """This stage's end of a link; those without an NCCL group use gloo."""
        group = groups.get((origin, goal))
        return Link(origin + goal - number, CPU if group is None else device, group)

    sender = None if is_last else Sender(link(number, number + 1), window, timing, device)
    packets = Receiver(link(number - 1, number), window, device, timing)
    replier = Sender(link(number, number - 1), delay, device=device) if delay and number > 1 else None
    replies = iter(Receiver(link(number + 1, number), delay, device, Timing())) if delay and not is_last else None
    saver = Saver(spec.run, number, emit, functools.partial(report_failure, number))
    stage = make(
        number,
        network,
        spec.components,
        make_recipe(spec.config, spec.micro_batches),
        device,
        log_every=spec.config.train.log_every,
        send=sender.send if sender is not None else None,
        send_back=replier.send if replier is not None else None,
        receive_back=functools.partial(next, replies) if replies is not None else None,
        emit=emit,
        save=saver.save,
        restore=saver.restore,
        timing=timing,
    )
    if spec.resume is not None:
        load_trainers(spec.resume.directory, stage.trainers, spec.resume.files)
        stage.step = spec.resume.step
    endpoint.endpoint.stage = stage
    cores = choose_cores(placement, spec.config.threads, spec.config.pipeline.pin_cores)
    if cores is not None and device.type == "cpu":
        os.sched_setaffinity(0, cores)  # pins only this thread; the threads that carry packets may use any core
    with single_samples_told():
        for packet in paced(packets, window, device):
            stage.handle(packet)
    saver.wait()
    if replier is not None:
        replier.send(Packet(Kind.END, 0, stage.step))
    for _ in replies or ():  # about the last micro-batches, of which nothing learns any more
        pass
    for each in (sender, replier):
        if each is not None:
            each.drain()
    stage.finish()


def paced(packets: Iterable[Packet], window: int, device: torch.device) -> Iterator[Packet]:
    """The packets, one after another; on a GPU, where handling one only queues its kernels, at most `window` are left unfinished, so
    that the window bounds the memory there too."""
    unfinished: deque[torch.cuda.Event] = deque()
    for packet in packets:
        yield packet
        if device.type == "cuda":
            unfinished.append(torch.cuda.Event(blocking=True))
            unfinished[-1].record()
            if len(unfinished) > window:
                unfinished.popleft().synchronize()


def coordinate(
    config: Config,
    components: int,
    load: Load,
    stream: Stream,
    directory: Path,
    emit: Callable[[Event], None],
    resume: ResumePoint | None = None,
    status: FeedStatus | None = None,
) -> None:
    """Run the pipeline from set-up to end, as the coordinator.

    Args:
        components: number of components of the network.
        load: reads the data; called after the stages have joined.
        directory: the run's directory, in which each stage writes its log and its checkpoints, on its own host.
        emit: receives all events, of the stages and of the coordinator itself.
        resume: the checkpoint to resume from; None for a new run.
        status: the object for the status of the feeding thread; None to make one.

    Raises:
        StageFailed: naming the process and the cause.
        UserError: when the data cannot be read, or a configured device is missing.
    """
    stages, status = config.pipeline.stages, status or FeedStatus()
    status.starting = READERS_TIMEOUT if config.data.workers else 0.0
    rpc.join(0, stages + 1)
    numbers = range(1, stages + 1)
    watch = Watch(numbers, silence_limit(config.health.timeout))
    greeting = Greeting(socket.gethostname(), os.getpid(), config.health.timeout)
    placements = await_answers([rpc.Call(stage, endpoint.greet, greeting) for stage in numbers], watch)
    health = Health(placements, status, watch)
    feeding = ThreadPoolExecutor(1, "feed").submit(
        feed, config, components, placements, load, stream, directory, resume, status, emit
    )
    try:
        monitor(feeding, health, emit)
    except StageFailed as error:
        error.pids = [placement.pid for placement in placements]
        raise
    emit(Coordinator(peak_memory(CPU)))
    try:
        await_answers([rpc.Call(stage, endpoint.dismiss) for stage in numbers], watch)
    except StageLost as error:
        time.sleep(BLAME_DELAY)  # the launcher may know the cause; then it ends this process first
        raise failure_of(health, error.stage, str(error)) from error
    close_data_plane()
    rpc.leave()


def prune_on_every_host(stages: int, step: int, kept: list[int]) -> None:
    """Let each stage remove its host's files of all checkpoints before a step, except of those that are kept.

    This does not wait for the stages, since a lost or frozen one must not delay the end of the run.
    """
    with suppress(StageLost):
        for stage in range(1, stages + 1):
            rpc.Call(stage, endpoint.prune, step, kept, timeout=PRUNE_TIMEOUT)
