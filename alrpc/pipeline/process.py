"""A process of the pipeline from joining to leaving: a stage's, and the coordinator's.

coordinator   joins ─ describes? ─ feeds (a thread) and monitors ─ dismisses ─ leaves
stage         joins ─ waits for its spec ─ builds ─ works through the stream ─ is dismissed ─ leaves
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch.distributed import ProcessGroup

from alrpc.checkpoint.files import Saver, load_trainers
from alrpc.checkpoint.resume import ResumePoint
from alrpc.config import Config
from alrpc.errors import StageFailed, UserError, error_line
from alrpc.events import Coordinator, Event, Failure, Ready
from alrpc.network import Network, build_network
from alrpc.pipeline import endpoint, rpc
from alrpc.pipeline.endpoint import StageSpec
from alrpc.pipeline.failures import (
    BLAME_DELAY,
    EXIT_DELAY,
    NEIGHBOUR_EXIT_DELAY,
    PRUNE_TIMEOUT,
    Disconnected,
    PeerLost,
    StageLost,
    log_line,
)
from alrpc.pipeline.feeder import FeedStatus, Load, Stream, feed
from alrpc.pipeline.groups import close_data_plane, open_data_plane
from alrpc.pipeline.link import Link, Receiver, Sender
from alrpc.pipeline.monitor import Health, failure_of, monitor
from alrpc.pipeline.placement import Placement, choose_cores, set_device
from alrpc.system import peak_memory
from alrpc.timing import Timing
from alrpc.training.optimizer import make_recipe
from alrpc.training.stage import Stage

MakeStage = Callable[..., Stage]
"""With the arguments of `Stage`."""
CPU = torch.device("cpu")


def run_stage(
    placement: Placement,
    world_size: int,
    on_terminate: Callable[[Callable[[], float]], None] = lambda ask: None,
    make: MakeStage = Stage,
) -> int:
    """Be a stage until the end of the run; returns the process' exit code.

    Args:
        on_terminate: takes what to call on SIGTERM, which gives the seconds that are left then.
        make: the stage's constructor.
    """
    own = endpoint.endpoint
    own.placement = placement
    on_terminate(own.ask_to_end)
    try:
        rpc.join(placement.stage, world_size)
        own.watch_coordinator()
        spec = own.await_spec()
        device = set_device(spec.device, spec.config.threads)
        network = build_network(spec.config, spec.sample, spec.target, spec.word_vectors)
        own.emit(Ready(placement.stage, spec.components, spec.device, placement.host, placement.pid))
        run_stream(placement, spec, network, device, make)
        own.dismissed.wait()
        close_data_plane()
        rpc.leave(own.silence_limit)
    except (PeerLost, Disconnected) as error:
        log_line(f"stage {placement.stage}: {error}")
        if not own.told_to_end:
            time.sleep(NEIGHBOUR_EXIT_DELAY)  # whoever failed is named by others, which then end this process
        return 1
    except Exception as error:
        log_line(traceback.format_exc())
        own.emit(Failure(placement.stage, error_line(error), retryable=not isinstance(error, UserError)))
        time.sleep(EXIT_DELAY)
        return 1
    return 0


def run_stream(placement: Placement, spec: StageSpec, network: Network, device: torch.device, make: MakeStage) -> None:
    """Connect to the neighbours, then be a stage that works through the stream until its end."""
    number, emit, timing = placement.stage, endpoint.endpoint.emit, Timing()
    groups, window = open_data_plane(number, spec.stages, spec.transport, device), spec.config.pipeline.window
    is_last = number == spec.stages
    sender = None if is_last else Sender(link_to(number + 1, groups, device), window, timing, device)
    packets = Receiver(link_to(number - 1, groups, device), window, device, timing)
    saver = Saver(spec.run, number, emit)
    stage = make(
        number,
        network,
        spec.components,
        make_recipe(spec.config, spec.micro_batches),
        device,
        log_every=spec.config.train.log_every,
        send=sender.send if sender is not None else None,
        emit=emit,
        save=saver.save,
        timing=timing,
    )
    if spec.resume is not None:
        load_trainers(spec.resume.directory, stage.trainers, spec.resume.files)
        stage.step = spec.resume.step
    endpoint.endpoint.stage = stage
    cores = choose_cores(placement, spec.config.threads, spec.config.pipeline.pin_cores)
    if cores is not None and device.type == "cpu":
        os.sched_setaffinity(0, cores)  # this thread's alone: those that carry packets may use any core
    for packet in packets:
        stage.handle(packet)
    saver.wait()
    if sender is not None:
        sender.drain()
    stage.finish()


def link_to(rank: int, groups: dict[int, ProcessGroup], device: torch.device) -> Link:
    """The link to a neighbour. `groups` are NCCL's by the neighbour's rank; gloo carries the rest."""
    return Link(rank, device if rank in groups else CPU, groups.get(rank))


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
    """Run the pipeline from set-up to end.

    Args:
        components: how many the network has.
        load: called once the stages are there, so that they start meanwhile.
        directory: the run's; each stage writes its log and its checkpoints below it, on its own host.
        emit: takes each event of the stages, and the coordinator's own.
        resume: the checkpoint to go on from; None to begin.
        status: to note in what the feeding thread does; None for one of its own.

    Raises:
        StageFailed: naming the process and the cause.
        UserError: when the data cannot be read, or the devices asked for are not there.
    """
    stages, status = config.pipeline.stages, status or FeedStatus()
    rpc.join(0, stages + 1)
    placements = [rpc.call(stage, endpoint.describe) for stage in range(1, stages + 1)]
    health = Health(placements, status, config.health.timeout)
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
        for placement in placements:
            rpc.call(placement.stage, endpoint.dismiss, timeout=health.limit)
    except StageLost as error:
        time.sleep(BLAME_DELAY)  # the launcher may know the cause; then it ends this process first
        raise failure_of(health, error.stage, str(error)) from error
    close_data_plane()
    rpc.leave(health.limit)


def prune_on_every_host(stages: int, step: int, kept: list[int]) -> None:
    """Have each stage remove, from its host's disk, what was written of checkpoints before a step that are not kept.

    Nobody waits for it: a stage that is gone or frozen must not hold up the end of the run.
    """
    with suppress(StageLost):
        for stage in range(1, stages + 1):
            rpc.Call(stage, endpoint.prune, step, kept, timeout=PRUNE_TIMEOUT)
