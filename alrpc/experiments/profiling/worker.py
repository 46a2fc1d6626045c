"""A process of a pipeline that is profiled, started by `alrpc profile`: rank 0 is the coordinator, rank n is stage n.

A stage takes some time to start and to stop recording, and stages are some steps apart. Leading and trailing steps keep both
away from the steps that count, so that all stages train while any stage works on those:

    coordinator   train × warm-up │ profile │ train × (lead + steps + lead) │ profiled │ end
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from alrpc import rundir
from alrpc.analysis.timeline import draw_run
from alrpc.config import Config, load_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset
from alrpc.events import Event, Profile, Spans
from alrpc.experiments.bench.rounds import at_the_ends, endless_micro_batches, with_constant_rate
from alrpc.network import resolve
from alrpc.pipeline.feeder import FeedStatus
from alrpc.pipeline.process import coordinate
from alrpc.planning.partition import choose_split
from alrpc.runtime.process import Process
from alrpc.runtime.worker import measure_rank
from alrpc.spans import SpanRecorder
from alrpc.telemetry.profiler import Profiler, trace_file
from alrpc.telemetry.recorder import recorder
from alrpc.training.packet import LABEL, Kind, Packet
from alrpc.training.stage import Stage


def profile_rank(process: Process, directory: Path, warm_up: int, steps: int) -> None:
    """Run this process' rank in a run whose directory holds its configuration."""
    make = functools.partial(ProfiledStage, directory)
    measure_rank(process, directory, make, lambda: feed_and_record(directory, warm_up, steps))


def feed_and_record(directory: Path, warm_up: int, steps: int) -> None:
    """Run the coordinator: feed the stream and record the run."""
    config, components = resolve(load_config(directory / rundir.CONFIG))
    config, feed = with_constant_rate(config), FeedStatus()

    def load() -> tuple[Dataset, list[int] | None]:
        dataset = read_data(config.data, config.train)
        return dataset, choose_split(config, dataset)

    with recorder(config, directory, "pipeline", config.pipeline.stages, quiet=True, draw_timeline=draw_run) as (_, emit):
        stream = functools.partial(stream_profile, config, warm_up, steps, feed, emit)
        coordinate(config, components, load, stream, directory, emit, status=feed)


def stream_profile(
    config: Config, warm_up: int, steps: int, feed: FeedStatus, emit: Callable[[Event], None], dataset: Dataset
) -> Iterator[Packet]:
    """The stream above; from its first marker, all of the coordinator's own spans are kept too."""
    lead = at_the_ends(config.pipeline.stages, config.pipeline.window)
    emit(Profile(warm_up + lead, steps))
    micro_batches = enumerate(endless_micro_batches(config, dataset))
    step = 0
    for step, (tensors, labels) in islice(micro_batches, warm_up):
        yield Packet(Kind.TRAIN, 1, step, {**tensors, LABEL: labels})
    yield Packet(Kind.PROFILE, 1, step + 1)
    feed.timing.spans = SpanRecorder(keep=lambda block: True)
    for step, (tensors, labels) in islice(micro_batches, lead + steps + lead):
        yield Packet(Kind.TRAIN, 1, step, {**tensors, LABEL: labels})
    yield Packet(Kind.PROFILED, 1, step + 1)
    yield Packet(Kind.END, 1, step + 1)


class ProfiledStage(Stage):
    """A stage that records itself with torch.profiler between two markers."""

    def __init__(self, run: Path, *arguments, **callbacks):
        super().__init__(*arguments, **callbacks)
        self.run = run
        self.actions |= {Kind.PROFILE: self.begin_profile, Kind.PROFILED: self.end_profile}
        self.profiler = Profiler(self.device)

    def emit_spans(self, last: bool = False) -> None:
        """Emit nothing here; only the spans of the recorded steps are emitted, by `end_profile`."""

    def begin_profile(self, packet: Packet) -> None:
        self.send(packet)
        self.profiler.begin(self.timing)

    def end_profile(self, packet: Packet) -> None:
        self.send(packet)
        for block in self.profiler.end(self.timing):
            self.emit(Spans(self.number, **block))

    def finish(self) -> None:
        self.emit(self.profiler.write(trace_file(self.run, self.number), self.number))
        super().finish()
