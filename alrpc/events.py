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

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from alrpc.reading.documents import Amount, Count, Few, Moment, Name, Score, Value, Whole, shown
from alrpc.timing import State


@dataclass(frozen=True)
class Event:
    """An event; `kind` is its name in JSON."""

    kind: ClassVar[str] = ""


ENGINES = ("pipeline", "sequential")  # those that train by a local objective; all others are baselines


@dataclass(frozen=True)
class Run(Event):
    """A run was started or resumed."""

    kind = "run"
    title: Name
    engine: Name
    """The engine: pipeline, sequential, or a baseline's name."""
    stages: Few
    """Number of processes that train."""
    command: list[str] = field(default_factory=list)
    """The command that was given, and its arguments."""
    commit: str | None = None
    """The commit of the working directory, if it is in a git repository."""


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
    test_samples: int | None = None
    """Number of samples in the test split."""
    validation_samples: int | None = None
    """Number of samples in the validation split; None without one."""


@dataclass(frozen=True)
class Ready(Event):
    """A stage has built its components."""

    kind = "ready"
    stage: Few
    components: list[Few]
    device: Name
    host: Name
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
    """Amount since the state was entered."""
    seconds: dict[str, float]
    """Amount spent in each state so far."""
    peak_memory: int
    """Peak memory in bytes."""
    in_flight: int | None = None
    """Packets sent to the stage that it has not begun to work on; None where nothing is sent."""


@dataclass(frozen=True)
class Losses(Event):
    """A component's losses, each averaged over the steps since the previous event of this kind."""

    kind = "losses"
    component: Few
    epoch: Count
    step: Count
    losses: dict[Name, Value | None]
    """Losses by name, in the objective's order; None where no loss was finite. In JSON each one is a field, `<name>_loss`."""
    stage: Few | None = None
    skipped_updates: Count = 0


@dataclass(frozen=True)
class StageTimes(Event):
    """A stage has finished an epoch of training."""

    kind = "stage"
    stage: Few
    epoch: Count
    step: Count
    epoch_seconds: Amount
    seconds: dict[State, Moment]
    """Amount spent in each of `alrpc.timing.STATES` since the run began."""
    peak_memory: Count
    """Peak memory in bytes."""


@dataclass(frozen=True)
class Evaluation(Event):
    """The score of every exit on a split."""

    kind = "evaluation"
    epoch: Count
    metric: Name
    exits: Annotated[list[Score], Field(min_length=1, max_length=10_000)]
    stage: Few | None = None
    samples: Count | None = None
    """Number of samples of the split; None in files of alrpc 0.1."""
    chance: Score | None = None
    """The score that guessing has; None where the metric has none."""
    about_exits: str = ""
    """What the objective says of the exits at the beginning; after the first epoch only."""
    split: Literal["test", "validation"] = "test"
    metrics: dict[Name, list[Score]] | None = None
    """Further metrics of every exit, by name; None if none were asked for."""


@dataclass(frozen=True)
class Spans(Event):
    """The spans of a block of consecutive packets in one process; see `alrpc.spans.SpanRecorder.take`."""

    kind = "moments"
    stage: Few
    """The stage's number; 0 for the coordinator."""
    block: Count
    origin: Moment
    packets: list[tuple[Name, Count, Count, Whole, Count]]
    entries: list[tuple[State | None, Count, Whole]]
    end: Whole
    device: list[tuple[State, Count, Whole, Whole]] | None = None


@dataclass(frozen=True)
class Clock(Event):
    """An estimate of the offset of a stage's clock from the coordinator's, in seconds."""

    kind = "clock"
    stage: Few
    at: Moment
    """Time of the estimate on the coordinator's clock."""
    offset: Moment
    uncertainty: Moment


@dataclass(frozen=True)
class Slow(Event):
    """A stage has been computing on one packet for unusually long, but lives."""

    kind = "slow"
    stage: Few
    host: Name
    seconds: Amount
    at: Count
    """The stage's step."""
    packet: Name
    locked: bool = False
    """Whether it answers no calls, since some code in it keeps Python's interpreter lock; then the packet is the last known one."""


@dataclass(frozen=True)
class Written(Event):
    """A stage has written its files of a checkpoint to its disk."""

    kind = "written"
    stage: int
    step: int
    files: dict[str, dict]
    """File names, each mapped to {"bytes": …, "sha256": …, "host": …}."""


@dataclass(frozen=True)
class Unwritten(Event):
    """A checkpoint could not be written."""

    kind = "unwritten"
    step: Count
    cause: str
    stage: Few | None = None


@dataclass(frozen=True)
class Checkpoint(Event):
    """A checkpoint is complete."""

    kind = "checkpoint"
    step: Count


@dataclass(frozen=True)
class Chosen(Event):
    """Settings that were chosen for this machine, by rule or by trial; in JSON each one is a field."""

    kind = "chosen"
    choices: dict[str, Any]


@dataclass(frozen=True)
class Coordinator(Event):
    """The last event of a pipeline run, emitted before the stages are dismissed."""

    kind = "coordinator"
    peak_memory: Count
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
    first: Count
    steps: Count


@dataclass(frozen=True)
class Operators(Event):
    """Where a process has written torch.profiler's trace, and one point in time that is known on both clocks."""

    kind = "operators"
    stage: Few
    align: Moment
    """Time of the middle of the annotation, in seconds on the process' clock."""
    annotation: Name
    file: Name


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


def from_json(tree: Any) -> Event | None:
    """The event that a line of metrics.jsonl or timings.jsonl holds; None for a kind that this version does not know.

    Raises:
        ValueError: pydantic's ValidationError for a field that is missing, of another type or beyond its range; or for a value
            that is no event.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("event"), str):
        raise ValueError(f"got {shown(tree)}; each line must be an object with the name of an event")
    kind = OF_KIND.get(tree["event"])
    if kind is None:
        return None
    if kind is Losses:
        tree = {**tree, "losses": {name.removesuffix(LOSS): value for name, value in tree.items() if name.endswith(LOSS)}}
    elif kind is Chosen:
        tree = {"choices": {name: value for name, value in tree.items() if name not in ("event", "time")}}
    elif kind is Slow and "for" in tree:
        tree = {**tree, "seconds": tree["for"]}
    return _validate(kind)(tree)


@cache
def _validate(kind: type[Event]) -> Callable[[dict], Event]:
    return TypeAdapter(Annotated[kind, AfterValidator(_check_spans)] if kind is Spans else kind).validator.validate_python


def _check_spans(spans: Spans) -> Spans:
    """Refuse spans that cannot be of one process; raises ValueError."""
    times = [*(at for *_, at in spans.entries), spans.end]
    if any(after < before for before, after in pairwise(times)):
        raise ValueError("entries: their times must ascend, up to the end")
    if not any(state and after > before for (state, *_), (before, after) in zip(spans.entries, pairwise(times), strict=True)):
        raise ValueError("entries: no time passes in any state")
    indices = [index for *_, index in spans.packets]
    if not indices or indices[-1] > len(spans.entries) or any(after <= before for before, after in pairwise(indices)):
        raise ValueError("packets: each must have entries of its own, in their order")
    return spans
