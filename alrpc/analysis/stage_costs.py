"""What each stage takes, for a simulation: from what `alrpc plan --json` has printed, or from the moments that a run has left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NotRequired

import numpy
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from alrpc.analysis.aligned import Block, PacketSpan, align_timings
from alrpc.errors import UserError
from alrpc.planning.costs import Cost
from alrpc.planning.partition import best_split
from alrpc.planning.simulation import FORWARD, StageCosts
from alrpc.reading.documents import Amount, Count, Few, read_json
from alrpc.timing import WORKING


class PlannedComponent(TypedDict):
    """A component, as `alrpc plan` has measured it."""

    number: Few
    seconds: Amount
    parameter_bytes: Count
    activation_bytes: Count
    packet_bytes: Count
    gradient_bytes: NotRequired[Count]


class PlannedSplit(TypedDict):
    """A split that `alrpc plan` has printed."""

    split: list[Few]


class Plan(TypedDict):
    """The JSON of `alrpc plan`."""

    components: list[PlannedComponent]
    best: PlannedSplit


PLAN = TypeAdapter(Plan)


def of_times(seconds: Sequence[float], stages: int | None, window: int) -> StageCosts:
    """The stages of the best split of components that take these seconds; without a number of stages, each has one to itself."""
    costs = [Cost(number, each, 0, 0, 0) for number, each in enumerate(seconds, 1)]
    return replace(of_components(costs, best_split(costs, stages or len(costs), window).sizes), packet_bytes=None)


def of_components(costs: Sequence[Cost], sizes: Sequence[int]) -> StageCosts:
    """The stages of a split: each sends between the last component's forward pass and its backward pass."""
    ends = numpy.cumsum(sizes)
    parts = [costs[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    seconds = [sum(cost.seconds for cost in part) for part in parts]
    ahead = [total - (1 - FORWARD) * part[-1].seconds for total, part in zip(seconds, parts, strict=True)]
    packets = [float(part[-1].packet_bytes) for part in parts]
    gradients = [float(sum(cost.gradient_bytes for cost in part)) for part in parts]
    return StageCosts(seconds, ahead, packets, gradients if any(gradients) else None)


def of_plan(path: Path, stages: int | None, window: int) -> StageCosts:
    """The stages of a plan's best split, or of the best split over another number of stages.

    Raises:
        UserError: when the file cannot be read or is no plan, or has fewer components than stages.
    """
    plan = read_json(path, PLAN)
    costs = [Cost(**component) for component in plan["components"]]
    sizes = plan["best"]["split"] if stages is None else best_split(costs, stages, window).sizes
    if not costs or min(sizes, default=0) < 1 or sum(sizes) != len(costs):
        raise UserError(f"{path}: best.split: got {sizes}; it must add up to the {len(costs)} components")
    if not all(cost.seconds for cost in costs):
        raise UserError(f"{path}: components: got one of 0 seconds; each must take some time")
    return of_components(costs, sizes)


def of_run(run: Path) -> StageCosts:
    """The stages of a run: means over those training micro-batches whose moments it has kept, without the first, and their spread.

    Raises:
        UserError: when the run has left no moments of a pipeline's training on CPUs.
    """
    timings = align_timings(run)
    if timings.engine != "pipeline" or any(block.device for block in timings.blocks):
        what = "stages on GPUs" if timings.engine == "pipeline" else f"the engine {timings.engine}"
        raise UserError(f"--from: {run} is a run of {what}; give one of a pipeline on CPUs, or --stage-ms")
    seconds, ahead, spreads = [], [], []
    for stage in sorted(timings.stages):
        packets = [(block, packet) for block in timings.blocks if block.stage == stage for packet in block.packets]
        works = numpy.array([_work(block, packet) for block, packet in packets if packet.kind == "train"][1:])
        if not works.any():
            raise UserError(f"--from: {run}: too few training steps of stage {stage} are among the moments that it has left")
        whole, before = works.mean(axis=0)
        seconds.append(float(whole))
        ahead.append(float(before))
        spreads.append(works[:, 0].std() / whole)
    return StageCosts(seconds, ahead, jitter=float(numpy.median(spreads)))


def _work(block: Block, packet: PacketSpan) -> tuple[float, float]:
    """The seconds that a stage works on a packet, and those of them before it hands the packet on."""
    spans = [
        span for span in block.spans if span.packet == packet.number and span.state in WORKING and span.state != "checkpoint"
    ]
    sent = packet.end if packet.sent is None else packet.sent
    return (
        sum(span.end - span.begin for span in spans),
        sum(max(0.0, min(span.end, sent) - span.begin) for span in spans),
    )
