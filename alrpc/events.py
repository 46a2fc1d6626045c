"""The events that the processes of a run emit, as types, and their JSON in metrics.jsonl and timings.jsonl.

event           emitted by      read by                                  kept in
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
unwritten       stage,committer committer, progress, analysis            metrics.jsonl
checkpoint      committer       progress, analysis                       metrics.jsonl
chosen          runtime         progress                                 metrics.jsonl
coordinator     monitor         progress, analysis                       metrics.jsonl
finished        stage           monitor, progress
failure         stage           monitor
told_to_end     stage           runtime
profile         profiled run    analysis                                 timings.jsonl
operators       profiled stage  analysis                                 timings.jsonl
round           measured stage  bench

Each line of metrics.jsonl also has `time`, the seconds since the run was started or resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """An event; `kind` is its name in JSON."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True)
class Run(Event):
    """A run was started or resumed."""

    kind = "run"
    title: str
    engine: str
    """The engine: pipeline, sequential, or a baseline's name."""
    stages: int
    """Number of processes that train."""


@dataclass(frozen=True)
class Job(Event):
    """The data set was loaded."""

    kind = "job"
    samples: int
    """Number of samples in the training split."""
    micro_batches: int
    """Number of micro-batches in an epoch."""
    start: int = 0
    """Number of steps that were done before the run was started or resumed."""
    packets: str | None = None
    """How packets travel between stages on GPUs, and the reason."""


@dataclass(frozen=True)
class Ready(Event):
    """A stage has built its components."""

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
    """The current position and state of a stage."""

    kind = "status"
    stage: int
    step: int
    """Number of micro-batches that the stage has trained on."""
    packet: tuple[str, int, int] | None
    """Kind, epoch and step of the last packet that the stage received."""
    received: int
    """Packets received so far."""
    sent: int
    """Packets sent so far."""
    state: str | None
    """One of `alrpc.timing.STATES`."""
    in_state: float
    """Seconds since the state was entered."""
    seconds: dict[str, float]
    """Seconds spent in each state so far."""
    peak_memory: int
    """Peak memory in bytes."""
    in_flight: int | None = None
    """Packets sent to the stage that it has not begun to work on; None where nothing is sent."""


@dataclass(frozen=True)
class Losses(Event):
    """A component's losses, each averaged over the steps since the previous event of this kind."""

    kind = "losses"
    component: int
    epoch: int
    step: int
    losses: dict[str, float | None]
    """Losses by name, in the objective's order; None where no loss was finite. In JSON each one is a field, `<name>_loss`."""
    stage: int | None = None
    skipped_updates: int = 0


@dataclass(frozen=True)
class StageTimes(Event):
    """A stage has finished an epoch of training."""

    kind = "stage"
    stage: int
    epoch: int
    step: int
    epoch_seconds: float
    seconds: dict[str, float]
    """Seconds spent in each of `alrpc.timing.STATES` since the run began."""
    peak_memory: int
    """Peak memory in bytes."""


@dataclass(frozen=True)
class Evaluation(Event):
    """The score of every exit on the test split."""

    kind = "evaluation"
    epoch: int
    metric: str
    exits: list[float]
    stage: int | None = None
    samples: int | None = None
    """Number of test samples; None in files of alrpc 0.1."""
    chance: float | None = None
    """The score that guessing has; None where the metric has none."""
    about_exits: str = ""
    """What the objective says of the exits at the beginning; after the first epoch only."""


@dataclass(frozen=True)
class Spans(Event):
    """The spans of a block of consecutive packets in one process; see `alrpc.spans.SpanRecorder.take`."""

    kind = "moments"
    stage: int
    """The stage's number; 0 for the coordinator."""
    block: int
    origin: float
    packets: list[tuple]
    entries: list[tuple]
    end: int
    device: list[tuple] | None = None


@dataclass(frozen=True)
class Clock(Event):
    """An estimate of the offset of a stage's clock from the coordinator's, in seconds."""

    kind = "clock"
    stage: int
    at: float
    """Time of the estimate on the coordinator's clock."""
    offset: float
    uncertainty: float


@dataclass(frozen=True)
class Slow(Event):
    """A stage has been computing on one packet for unusually long, but still answers calls."""

    kind = "slow"
    stage: int
    host: str
    seconds: float
    at: int
    """The stage's step."""
    packet: str


@dataclass(frozen=True)
class Written(Event):
    """A stage has written its files of a checkpoint to its disk."""

    kind = "written"
    stage: int
    step: int
    files: dict[str, dict]
    """File names, each mapped to {"bytes": …, "sha256": …}."""


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
    """Settings that were chosen for this machine, by rule or by trial; in JSON each one is a field."""

    kind = "chosen"
    choices: dict[str, Any]


@dataclass(frozen=True)
class Coordinator(Event):
    """The last event of a pipeline run, emitted before the stages are dismissed."""

    kind = "coordinator"
    peak_memory: int
    """The coordinator's peak memory in bytes."""


@dataclass(frozen=True)
class Finished(Event):
    """A stage has processed the whole stream."""

    kind = "finished"
    stage: int
    peak_memory: int
    """Peak memory in bytes."""
    digests: list[str] = field(default_factory=list)
    """Digest of the parameters of each of the stage's components."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Numbers of `effective` and `affiliated` parameters."""


@dataclass(frozen=True)
class Failure(Event):
    """A stage raised an exception; the last event that it emits."""

    kind = "failure"
    stage: int
    cause: str
    retryable: bool


@dataclass(frozen=True)
class ToldToEnd(Event):
    """A stage received SIGTERM from a process other than the launcher."""

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
    """Where a process has written torch.profiler's trace, and one point in time that is known on both clocks."""

    kind = "operators"
    stage: int
    align: float
    """Time of the middle of the annotation, in seconds on the process' clock."""
    annotation: str
    file: str


@dataclass(frozen=True)
class Round(Event):
    """A measured stage has finished a round; `marks` are its clocks' readings at the start and after each step."""

    kind = "round"
    stage: int
    round: int
    measured: str
    """What was measured: pipeline or ceiling."""
    marks: list[dict[str, float]]
    packet_bytes: int


METRICS = (Start, Losses, Evaluation, StageTimes, Coordinator, Chosen, Checkpoint, Unwritten, Slow)
"""The events that metrics.jsonl holds."""
TIMINGS = (Run, Ready, Spans, Clock, Profile, Operators)
"""The events that timings.jsonl holds."""
OF_KIND = {kind.kind: kind for kind in (*METRICS, *TIMINGS)}
LOSS = "_loss"


def to_json(event: Event) -> dict[str, Any]:
    """An event as the JSON object of its line; fields that have their default value are left out."""
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
    """The event that a line of metrics.jsonl or timings.jsonl holds; None for a kind that this version does not know.

    Raises:
        KeyError: naming a missing field.
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
