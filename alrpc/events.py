"""What the processes of a run tell, typed, and the JSON that metrics.jsonl and timings.jsonl hold of it.

event           told by         read by                                  kept in
run             recorder        analysis                                 timings.jsonl
job             feeder          progress, bench
ready           stage           progress, analysis                       timings.jsonl
start           feeder          progress, analysis                       metrics.jsonl
status          stage           progress, monitor
losses          stage           progress, loggers, analysis              metrics.jsonl
stage           stage           progress, loggers, analysis              metrics.jsonl
evaluation      last stage      progress, loggers, analysis              metrics.jsonl
moments         every process   analysis                                 timings.jsonl
clock           monitor         analysis                                 timings.jsonl
slow            monitor         progress, terminal, analysis             metrics.jsonl
written         stage           committer
unwritten       stage           committer, progress, analysis            metrics.jsonl
checkpoint      committer       progress, analysis                       metrics.jsonl
chosen          runtime         progress                                 metrics.jsonl
coordinator     monitor         progress, analysis                       metrics.jsonl
finished        stage           monitor, progress
failure         stage           monitor
told_to_end     stage           runtime
profile         profiled run    analysis                                 timings.jsonl
operators       profiled stage  analysis                                 timings.jsonl
round           measured stage  bench

A process writes the events of metrics.jsonl with `time`, seconds since its run began or went on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """What was told; `kind` is its name in JSON."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True)
class Run(Event):
    """A run, or another part of one that was resumed, has begun."""

    kind = "run"
    title: str
    engine: str
    """pipeline, sequential, or a baseline's name."""
    stages: int
    """Processes that train."""


@dataclass(frozen=True)
class Job(Event):
    """The data is there."""

    kind = "job"
    samples: int
    """Of the training split."""
    micro_batches: int
    """Of an epoch."""
    start: int = 0
    """Steps that were done when this part of the run began."""
    packets: str | None = None
    """How packets travel between stages on GPUs, and why so."""


@dataclass(frozen=True)
class Ready(Event):
    """A stage has its components."""

    kind = "ready"
    stage: int
    components: list[int]
    device: str
    host: str
    pid: int | None = None


@dataclass(frozen=True)
class Start(Event):
    """The first micro-batch is about to be sent."""

    kind = "start"


@dataclass(frozen=True)
class Status(Event):
    """Where a stage is now."""

    kind = "status"
    stage: int
    step: int
    """Micro-batches that it has trained on."""
    packet: tuple[str, int, int] | None
    """Kind, epoch and step of the last one that came."""
    received: int
    sent: int
    """Packets."""
    state: str | None
    """One of `alrpc.timing.STATES`."""
    in_state: float
    """Seconds since it was entered."""
    seconds: dict[str, float]
    """In each state, so far."""
    peak_memory: int
    """Bytes."""
    in_flight: int | None = None
    """Packets that were sent to it and that it has not begun with; None where nothing is sent."""


@dataclass(frozen=True)
class Losses(Event):
    """A component's losses, each averaged over the steps since the last such event."""

    kind = "losses"
    component: int
    epoch: int
    step: int
    losses: dict[str, float | None]
    """By name, in the objective's order; None where no loss was finite. In JSON each is a field, `<name>_loss`."""
    stage: int | None = None
    skipped_updates: int = 0


@dataclass(frozen=True)
class StageTimes(Event):
    """A stage has ended an epoch of training."""

    kind = "stage"
    stage: int
    epoch: int
    step: int
    epoch_seconds: float
    seconds: dict[str, float]
    """In each of `alrpc.timing.STATES` since the run began."""
    peak_memory: int
    """Bytes."""


@dataclass(frozen=True)
class Evaluation(Event):
    """The score of every exit on the test split."""

    kind = "evaluation"
    epoch: int
    metric: str
    exits: list[float]
    stage: int | None = None


@dataclass(frozen=True)
class Spans(Event):
    """A block of consecutive packets in one process, to the moment: see `alrpc.spans.SpanRecorder.take`."""

    kind = "moments"
    stage: int
    """0 for the coordinator."""
    block: int
    origin: float
    packets: list[tuple]
    entries: list[tuple]
    end: int
    device: list[tuple] | None = None


@dataclass(frozen=True)
class Clock(Event):
    """An estimate of how far a stage's clock is from the coordinator's; seconds."""

    kind = "clock"
    stage: int
    at: float
    """On the coordinator's clock."""
    offset: float
    uncertainty: float


@dataclass(frozen=True)
class Slow(Event):
    """A stage computes for unusually long on one packet, and answers."""

    kind = "slow"
    stage: int
    host: str
    seconds: float
    at: int
    """Its step."""
    packet: str


@dataclass(frozen=True)
class Written(Event):
    """A stage's files of a checkpoint are on its disk."""

    kind = "written"
    stage: int
    step: int
    files: dict[str, dict]
    """name -> {"bytes": …, "sha256": …}"""


@dataclass(frozen=True)
class Unwritten(Event):
    """A checkpoint could not be written."""

    kind = "unwritten"
    step: int
    cause: str
    stage: int | None = None


@dataclass(frozen=True)
class Checkpoint(Event):
    """A checkpoint is complete."""

    kind = "checkpoint"
    step: int


@dataclass(frozen=True)
class Chosen(Event):
    """What was chosen for this machine, or by trying on it; in JSON each is a field."""

    kind = "chosen"
    choices: dict[str, Any]


@dataclass(frozen=True)
class Coordinator(Event):
    """The last event of a pipeline's run: the stages are about to be dismissed."""

    kind = "coordinator"
    peak_memory: int
    """Bytes."""


@dataclass(frozen=True)
class Finished(Event):
    """A stage has worked through the whole stream."""

    kind = "finished"
    stage: int
    peak_memory: int
    """Bytes."""
    digests: list[str] = field(default_factory=list)
    """Of each of its components."""
    parameters: dict[str, int] = field(default_factory=dict)
    """`effective` and `affiliated`, counted."""


@dataclass(frozen=True)
class Failure(Event):
    """A stage raised; the last that it tells."""

    kind = "failure"
    stage: int
    cause: str
    retryable: bool


@dataclass(frozen=True)
class ToldToEnd(Event):
    """A stage was sent SIGTERM by somebody other than the launcher."""

    kind = "told_to_end"
    stage: int


@dataclass(frozen=True)
class Profile(Event):
    """The steps that are recorded with torch.profiler."""

    kind = "profile"
    first: int
    steps: int


@dataclass(frozen=True)
class Operators(Event):
    """Where a process has left torch.profiler's trace, and a moment that is known on both clocks."""

    kind = "operators"
    stage: int
    align: float
    """Seconds on the process' clock, of the middle of an annotation."""
    annotation: str
    file: str


@dataclass(frozen=True)
class Round(Event):
    """A measured stage has ended a round: what its clocks showed when it began and after each step."""

    kind = "round"
    stage: int
    round: int
    measured: str
    """pipeline or ceiling."""
    marks: list[dict[str, float]]
    packet_bytes: int


METRICS = (Start, Losses, Evaluation, StageTimes, Coordinator, Chosen, Checkpoint, Unwritten, Slow)
"""What metrics.jsonl keeps."""
TIMINGS = (Run, Ready, Spans, Clock, Profile, Operators)
"""What timings.jsonl keeps."""
OF_KIND = {kind.kind: kind for kind in (*METRICS, *TIMINGS)}
LOSS = "_loss"


def to_json(event: Event) -> dict[str, Any]:
    """An event as the object of its line; what is None or 0 by default is left out."""
    tree = {each.name: getattr(event, each.name) for each in fields(event)}
    tree = {each.name: tree[each.name] for each in fields(event) if each.default is MISSING or tree[each.name] != each.default}
    if isinstance(event, Losses):
        losses = tree.pop("losses")
        tree |= {f"{name}{LOSS}": value for name, value in losses.items()}
    elif isinstance(event, Chosen):
        tree = tree["choices"]
    elif isinstance(event, Slow):
        tree["for"] = tree.pop("seconds")
    return {"event": event.kind, **tree}


def from_json(tree: Mapping[str, Any]) -> Event | None:
    """The event of a line of metrics.jsonl or timings.jsonl; None for one that this alrpc does not know.

    Raises:
        KeyError: naming a field that is missing.
    """
    kind = OF_KIND.get(tree["event"])
    if kind is None:
        return None
    tree = {name: value for name, value in tree.items() if name not in ("event", "time")}
    if kind is Losses:
        tree["losses"] = {name.removesuffix(LOSS): value for name, value in tree.items() if name.endswith(LOSS)}
    elif kind is Chosen:
        tree = {"choices": tree}
    elif kind is Slow:
        tree["seconds"] = tree["for"]
    known = fields(kind)
    missing = [each.name for each in known if each.name not in tree and each.default is each.default_factory is MISSING]
    if missing:
        raise KeyError(missing[0])
    return kind(**{each.name: tree[each.name] for each in known if each.name in tree})
