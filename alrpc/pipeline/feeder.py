"""The coordinator's feeding thread: sets up the stages, then sends the whole stream to stage 1."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from alrpc.checkpoint.resume import ResumePoint
from alrpc.config import Config
from alrpc.data.dataset import Dataset
from alrpc.data.loader import epoch_size, validation_samples
from alrpc.errors import StageFailed, UserError
from alrpc.events import Event, Job, Spans, Start
from alrpc.network import configured_objective
from alrpc.pipeline import endpoint, rpc
from alrpc.pipeline.endpoint import StageSpec
from alrpc.pipeline.groups import links_between, open_data_plane
from alrpc.pipeline.link import Link, Sender
from alrpc.pipeline.placement import Placement, choose_devices, describe_transport, split_components
from alrpc.pipeline.wire import CPU
from alrpc.timing import Timing
from alrpc.training.packet import Packet

T = TypeVar("T")
Load = Callable[[], tuple[Dataset, list[int] | None]]
"""Reads the data set; returns it and the number of components of each stage (None for an even split)."""
Stream = Callable[[Dataset], Iterator[Packet]]
"""The packets to feed, in order."""


class FeedStatus:
    """The status of the feeding thread, which writes it; the monitor reads it."""

    def __init__(self):
        self.reading: int | None = None
        """The number of micro-batches that were read before the one that the thread waits for; None if it is not waiting."""
        self.starting = 0.0
        """Seconds that the first micro-batch may take, in which the processes that read it start."""
        self.sent = 0
        """Number of packets that were sent to stage 1."""
        self.timing = Timing()

    def watch(self, micro_batches: Iterator[T]) -> Iterator[T]:
        """Pass micro-batches through, and record when the thread waits for the loader."""
        for read in itertools.count():
            self.reading = read
            micro_batch = next(micro_batches, None)
            self.reading = None
            if micro_batch is None:
                return
            yield micro_batch


def feed(
    config: Config,
    components: int,
    placements: list[Placement],
    load: Load,
    stream: Stream,
    directory: Path,
    resume: ResumePoint | None,
    status: FeedStatus,
    emit: Callable[[Event], None],
) -> None:
    """Load the data, set up every stage, then send the stream, as far ahead as the window allows.

    Raises:
        UserError: when the data cannot be read, or a configured device is missing.
        StageFailed: when a later part of the data cannot be read.
        PeerLost, StageLost: when a stage is lost.
    """
    transport, dataset = set_up_stages(config, components, placements, load, directory, resume, emit)
    links = links_between(len(placements), configured_objective(config, dataset.target).delay > 0)
    open_data_plane(0, links, transport, CPU)
    emit(Start())
    timing = status.timing
    sender = Sender(Link(1, CPU), config.pipeline.window, timing)
    timing.enter("waiting_to_receive")  # waiting for the loader
    try:
        for packet in stream(dataset):
            timing.begin_packet(packet.kind, packet.epoch, packet.step)
            sender.send(packet)
            status.sent += 1
            timing.enter("waiting_to_receive")
            emit_spans(timing, emit)
        sender.drain()
        emit_spans(timing, emit, last=True)
    except UserError as error:  # in the middle of a run, whose directory is kept
        host = socket.gethostname()
        raise StageFailed(f"the coordinator (rank 0, host {host}) cannot go on: {error}", retryable=False) from error


def set_up_stages(
    config: Config,
    components: int,
    placements: list[Placement],
    load: Load,
    directory: Path,
    resume: ResumePoint | None,
    emit: Callable[[Event], None],
) -> tuple[str, Dataset]:
    """Read the data and send every stage its spec; returns the transport of packets between stages, and the data set."""
    devices, transport = choose_devices(placements, config.device)
    dataset, sizes = load()
    size = epoch_size(dataset, config.data.batch_size, config.train)
    start = resume.step if resume is not None else 0
    packets = describe_transport(placements, devices, transport)
    emit(Job(size.samples, size.micro_batches, start, packets, len(dataset.test), validation_samples(dataset)))
    split = split_components(components, len(placements), sizes)
    for placement, numbers, device in zip(placements, split, devices, strict=True):
        spec = StageSpec(
            config=config,
            sample=dataset.sample,
            target=dataset.target,
            micro_batches=size.micro_batches,
            components=numbers,
            word_vectors=dataset.word_vectors if numbers[0] == 1 else None,
            stages=len(placements),
            device=device,
            transport=transport,
            run=directory,
            resume=resume,
        )
        rpc.Call(placement.stage, endpoint.set_up, spec).result()
    return transport, dataset


def emit_spans(timing: Timing, emit: Callable[[Event], None], last: bool = False) -> None:
    """Emit the coordinator's own kept blocks of spans that have ended."""
    for block in timing.spans.take(last):
        emit(Spans(0, **block))
