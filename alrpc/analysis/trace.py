"""One trace of all processes of a profiled run, in the Trace Event Format of Perfetto and chrome://tracing.

    coordinator   packets         ▬ ▬ ▬          handling, waiting …
    stage 1       packets         ▬▬▬▬▬  ▬▬▬▬▬   step 12 ⊃ forward, backward, update …; arrows to the next stage's
                  a thread         ▬▬ ▬▬          operators, by torch.profiler
                  GPU, stream 7    ▬▬             kernels

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict

from alrpc import events, rundir
from alrpc.analysis.aligned import Block, PacketSpan, Span, Timings, align_timings
from alrpc.analysis.metrics import read_timings
from alrpc.errors import UserError
from alrpc.reading.documents import Value, describe
from alrpc.reading.regular import open_regular
from alrpc.spans import COMPUTING
from alrpc.telemetry.profiler import ALIGN

TRACE = "trace.json.gz"
PACKETS, GPU, THREADS = 1, 2, 10  # track numbers within a process
ROUNDING = 0.01  # µs
LARGEST = 1 << 30  # bytes of the largest trace of a process
KINDS = (
    "cpu_op",
    "user_annotation",
    "kernel",
    "gpu_memcpy",
    "gpu_memset",
    "cuda_runtime",
    "cuda_driver",
)  # of torch.profiler's events, those that are kept


def merge(run: Path) -> Path:
    """Write the trace of all processes into the directory of a profiled run; returns its path.

    Times are µs since the first event, on the coordinator's clock, or on the first process' clock in a baseline.

    Raises:
        UserError: for a run that was not profiled.
    """
    timings, recorded = align_timings(run), read_timings(run)
    profile = next((event for event in recorded if isinstance(event, events.Profile)), None)
    if profile is None:
        raise UserError(f"{run}: was not profiled; make a trace with alrpc profile")
    steps = range(profile.first, profile.first + profile.steps)
    blocks = [_only(block, steps) for block in timings.blocks]
    blocks = [block for block in blocks if block.packets]
    origin = min(block.begin for block in blocks)
    trace = [*_names(timings), *_packets(blocks, origin), *_flows(blocks, origin)]
    for event in (event for event in recorded if isinstance(event, events.Operators)):
        moment = timings.on_coordinators_clock(event.stage, event.align) - origin
        own = [block for block in blocks if block.stage == event.stage]
        begin, end = own[0].begin - origin, own[-1].end - origin
        trace += _operators(run / "logs" / event.file, event.stage, event.annotation, moment, begin, end)
    path = run / TRACE
    with rundir.partial_file(path) as partial, gzip.open(partial, "wt", encoding="utf-8", compresslevel=5) as file:
        json.dump({"displayTimeUnit": "ms", "traceEvents": trace}, file)
    return path


def _only(block: Block, steps: range) -> Block:
    """The block, reduced to the training micro-batches of these steps."""
    packets = [each for each in block.packets if each.kind == "train" and each.step in steps]
    numbers = {each.number for each in packets}
    spans = [span for span in block.spans if span.packet in numbers]
    device = [span for span in block.device if spans and spans[0].begin <= span.begin and span.end <= spans[-1].end]
    return replace(block, packets=packets, spans=spans, device=device)


def _at(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _meta(kind: str, process: int, track: int, **arguments) -> dict:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": arguments}


def _names(timings: Timings) -> Iterator[dict]:
    """The names of the processes and of their packet tracks."""
    for stage in sorted({block.stage for block in timings.blocks}):
        name, role = "coordinator", "stage" if timings.engine == "pipeline" else "process"
        if stage:
            about = timings.stages[stage]
            numbers = ", ".join(map(str, about.components))
            name = f"{role} {stage}: components {numbers} on {about.device}, {about.host}"
        yield _meta("process_name", stage, 0, name=name)
        yield _meta("process_sort_index", stage, 0, sort_index=stage)
        yield _meta("thread_name", stage, PACKETS, name="packets")
        yield _meta("thread_sort_index", stage, PACKETS, sort_index=0)
        if any(block.device for block in timings.blocks if block.stage == stage):
            yield _meta("thread_name", stage, GPU, name="packets, on the GPU")
            yield _meta("thread_sort_index", stage, GPU, sort_index=1)


def _packets(blocks: list[Block], origin: float) -> Iterator[dict]:
    """A slice for each packet, which encloses those of its states; waits for the next packet lie between the slices."""
    for block in blocks:
        for each in block.packets:
            yield _slice(
                block.stage,
                PACKETS,
                f"step {each.step}",
                each.begin - origin,
                each.end - origin,
                step=each.step,
                packet=each.number,
            )
        steps = {each.number: each for each in block.packets}
        for span in block.spans:
            yield _phase(block, span, steps.get(span.packet), PACKETS, origin)
        for span in block.device:
            yield _phase(block, span, None, GPU, origin)


def _phase(block: Block, span: Span, packet: PacketSpan | None, track: int, origin: float) -> dict:
    about = {"step": packet.step} if packet else {}
    about |= {"part": span.part} if span.part and span.state in COMPUTING else {}
    return _slice(block.stage, track, span.state, span.begin - origin, span.end - origin, **about)


def _slice(process: int, track: int, name: str, begin: float, end: float, **arguments) -> dict:
    start = _at(begin)
    length = round(_at(end) - start, 3)
    return {
        "ph": "X",
        "cat": "alrpc",
        "name": name,
        "pid": process,
        "tid": track,
        "ts": start,
        "dur": length,
        "args": arguments,
    }


def _flows(blocks: list[Block], origin: float) -> Iterator[dict]:
    """An arrow for each packet, from its sending to the begin of its processing in the next process."""
    packets = {(block.stage, each.number): each for block in blocks for each in block.packets}
    for number, ((stage, packet), each) in enumerate(packets.items()):
        other = packets.get((stage + 1, packet))
        if each.sent is None or other is None:
            continue
        flow = {"cat": "packet", "name": "packet", "id": number, "tid": PACKETS}
        yield {**flow, "ph": "s", "pid": stage, "ts": _at(each.sent - origin)}
        yield {**flow, "ph": "f", "bp": "e", "pid": stage + 1, "ts": _at(other.begin - origin)}


def _operators(path: Path, process: int, annotation: str, moment: float, begin: float, end: float) -> Iterator[dict]:
    """The operators that torch.profiler recorded in a process between two times.

    Args:
        annotation: name of the annotation whose middle was at `moment`.
        moment, begin, end: seconds on the trace's clock.

    Raises:
        UserError: when the file is damaged.
    """
    recorded = _read_operators(path)
    align = next((event for event in recorded if event["name"] == annotation), None)
    if align is None:
        raise UserError(f"{path}: has no event {annotation}; profile the run again")
    shift = moment * 1e6 - (align["ts"] + align["dur"] / 2)
    tracks: dict[tuple, int] = {}
    open_until: dict[int, list[float]] = {}
    for event in sorted(recorded, key=lambda event: (event["ts"], -event["dur"])):
        start, length = round(event["ts"] + shift, 3), event["dur"]
        if event["name"].startswith(ALIGN) or start < begin * 1e6 or start + length > end * 1e6:
            continue
        source = (event["cat"] in ("kernel", "gpu_memcpy", "gpu_memset"), event["tid"])
        if source not in tracks:
            tracks[source] = THREADS + len(tracks)
            name = f"GPU, stream {event['tid']}" if source[0] else f"operators, thread {event['tid']}"
            yield _meta("thread_name", process, tracks[source], name=name)
            yield _meta("thread_sort_index", process, tracks[source], sort_index=tracks[source])
        # An operator that another thread ends, such as a send, may overlap others; the slices of a track must not.
        outer = open_until.setdefault(tracks[source], [])
        while outer and outer[-1] <= start:
            outer.pop()
        if outer and start + length > outer[-1] + ROUNDING:
            continue
        outer.append(start + length)
        kept = {"ph": "X", "cat": event["cat"], "name": event["name"], "pid": process, "tid": tracks[source]}
        yield {**kept, "ts": start, "dur": length, "args": event.get("args", {})}


class Operator(TypedDict):
    """An event of torch.profiler's trace, in µs; of other events no more than the first two are read."""

    ph: str
    cat: str
    name: str
    ts: Value
    dur: Value
    tid: int | str
    args: NotRequired[dict[str, Any]]


OPERATOR = TypeAdapter(Operator)


def _read_operators(path: Path) -> list[Operator]:
    try:
        with open_regular(path) as compressed, gzip.open(compressed) as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UserError(f"{path}: has more than {LARGEST:,} bytes when unpacked; profile fewer steps")
        every = from_json(text)["traceEvents"]
        found = [event for event in every if event.get("ph") == "X" and event.get("cat") in KINDS]
        return [OPERATOR.validate_python(event) for event in found]
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from error
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is no trace of torch.profiler: {' '.join(str(error).split())}") from error
