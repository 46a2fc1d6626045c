"""The spans that a run's processes left in timings.jsonl, aligned to the coordinator's clock."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from alrpc import events, rundir
from alrpc.analysis.metrics import read_timings
from alrpc.errors import UsageError, UserError
from alrpc.spans import BLOCK


@dataclass(frozen=True)
class Span:
    """An interval that a process spent in one state."""

    state: str
    part: int
    """Number of the component, or of the schedule's micro-batch; 0 for none."""
    packet: int
    """The packet's position in the stream, from 0; waiting for a packet belongs to that packet."""
    begin: float
    end: float
    """Begin and end are seconds on the coordinator's clock."""


@dataclass(frozen=True)
class PacketSpan:
    """The interval in which one process works on a packet; times are seconds on the coordinator's clock."""

    number: int
    """The packet's position in the stream, from 0."""
    kind: str
    epoch: int
    step: int
    ready: float
    """When the packet had arrived."""
    begin: float
    """When the process began to work on it."""
    sent: float | None
    """When it was passed to the next stage; None in the last stage."""
    end: float


@dataclass(frozen=True)
class Block:
    """Consecutive packets of one process."""

    stage: int
    """0 for the coordinator."""
    number: int
    packets: list[PacketSpan]
    spans: list[Span]
    """The process' states, without gaps."""
    device: list[Span]
    """The states of its GPU, which belong to no packet; empty without a GPU."""

    @property
    def begin(self) -> float:
        return self.spans[0].begin

    @property
    def end(self) -> float:
        return self.spans[-1].end


@dataclass(frozen=True)
class Timings:
    """The contents of timings.jsonl, aligned to one clock."""

    title: str
    engine: str
    """pipeline, sequential, or a baseline's name."""
    stages: dict[int, events.Ready]
    """By number, from 1."""
    blocks: list[Block]
    """By number and stage."""
    clocks: dict[int, list[tuple[float, float]]]
    """For each stage, the estimates of its clock's offset: (time on the coordinator's clock, offset), in seconds."""
    shifts: dict[int, float]
    """For each stage, the seconds that its clock was set forward beyond its offset."""

    def components_of(self, stage: int) -> list[int]:
        """The numbers of a stage's components; none where they are not known."""
        return self.stages[stage].components if stage in self.stages else []

    def on_coordinators_clock(self, stage: int, moment: float) -> float:
        """Convert a time of a stage's clock to the coordinator's clock."""
        return moment - offset_at(moment, self.clocks.get(stage, [])) + self.shifts.get(stage, 0.0)


def align_timings(run: Path) -> Timings:
    """Read the spans of a run and align them to the coordinator's clock.

    Raises:
        UserError: when the run has left none, or the file is damaged.
    """
    path = run / rundir.TIMINGS
    if not path.exists():
        raise UsageError(f"{run}: no {rundir.TIMINGS} in it; give the directory of a run")
    kept = read_timings(run)
    head = next((event for event in kept if isinstance(event, events.Run)), None)
    of_blocks = [event for event in kept if isinstance(event, events.Spans)]
    if head is None or not of_blocks:
        raise UserError(f"{path}: no moments in it; a run leaves them after {BLOCK} packets, and at its end")
    stages = {event.stage: event for event in kept if isinstance(event, events.Ready)}
    numbers = {0, *range(1, len(stages) + 1)}
    if not stages or stages.keys() != numbers - {0} or not {event.stage for event in of_blocks} <= numbers:
        raise UserError(f"{path}: is damaged: it must tell of stages 1, 2, … without a gap; got {sorted(stages)}")
    clocks: dict[int, list[tuple[float, float]]] = {}
    for event in kept:
        if isinstance(event, events.Clock):
            clocks.setdefault(event.stage, []).append((event.at, event.offset))
    blocks = [_read_block(event, clocks.get(event.stage, [])) for event in of_blocks]
    blocks.sort(key=lambda block: (block.number, block.stage))
    shifts = _until_packets_arrive(blocks)
    blocks = [_shifted(block, shifts[block.stage]) if shifts[block.stage] else block for block in blocks]
    return Timings(head.title, head.engine, stages, blocks, clocks, shifts)


def _read_block(event: events.Spans, clock: list[tuple[float, float]]) -> Block:
    origin = event.origin - offset_at(event.origin, clock)

    def at(microseconds: int) -> float:
        return origin + microseconds / 1e6

    first = event.block * BLOCK
    starts = [index for *_, index in event.packets]
    times = [at(moment) for *_, moment in event.entries] + [at(event.end)]
    spans = []
    for index, (state, part, _) in enumerate(event.entries):
        if state is not None and times[index + 1] > times[index]:
            # The entry before a packet's first one is the wait for that packet.
            packet = min(bisect.bisect_right(starts, index + 1) - 1, len(starts) - 1)
            spans.append(Span(state, part, first + max(packet, 0), times[index], times[index + 1]))
    packets = []
    for place, (kind, epoch, step, ready, index) in enumerate(event.packets):
        after = starts[place + 1] - 1 if place + 1 < len(starts) else len(event.entries)
        sends = [i for i in range(index, after) if event.entries[i][0] == "waiting_to_send"]
        sent = times[sends[0] + 1] if sends else None
        packets.append(PacketSpan(first + place, kind, epoch, step, at(ready), times[index], sent, times[after]))
    device = [Span(state, part, -1, at(begin), at(end)) for state, part, begin, end in event.device or []]
    return Block(event.stage, event.block, packets, spans, device)


def offset_at(moment: float, clock: list[tuple[float, float]]) -> float:
    """A clock's offset at a time of that clock, interpolated between the estimates around it.

    Args:
        clock: estimates, each a time on the coordinator's clock and the offset at that time, in seconds.
    """
    if not clock:
        return 0.0
    points = [(at + offset, offset) for at, offset in clock]
    index = bisect.bisect(points, (moment,))
    if index in (0, len(points)):
        return points[min(index, len(points) - 1)][1]
    (before, one), (after, other) = points[index - 1], points[index]
    return one + (other - one) * (moment - before) / (after - before)


def _until_packets_arrive(blocks: list[Block]) -> dict[int, float]:
    """Seconds to set each stage's clock forward so that no packet arrives before it was sent: offsets are only estimates."""
    sent = {(block.stage, each.number): each.sent for block in blocks for each in block.packets if each.sent is not None}
    behind: dict[int, float] = {}
    for block in blocks:
        early = [sent[key] - each.ready for each in block.packets if (key := (block.stage - 1, each.number)) in sent]
        behind[block.stage] = max([behind.get(block.stage, 0.0), *early])
    shifts, total = {}, 0.0
    for stage in sorted(behind):  # each clock at least as far as those of the stages before it
        total += behind[stage]
        shifts[stage] = total
    return shifts


def _shifted(block: Block, seconds: float) -> Block:
    def shifted(span: Span) -> Span:
        return replace(span, begin=span.begin + seconds, end=span.end + seconds)

    packets = [
        replace(
            each,
            ready=each.ready + seconds,
            begin=each.begin + seconds,
            sent=each.sent + seconds if each.sent is not None else None,
            end=each.end + seconds,
        )
        for each in block.packets
    ]
    return replace(block, packets=packets, spans=[*map(shifted, block.spans)], device=[*map(shifted, block.device)])


def step_seconds(block: Block) -> float:
    """Median seconds from the begin of one training micro-batch to the next; 0 where no two follow each other."""
    gaps = sorted(
        after.begin - before.begin for before, after in pairwise(block.packets) if before.kind == after.kind == "train"
    )
    return gaps[len(gaps) // 2] if gaps else 0.0
