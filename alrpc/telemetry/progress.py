"""The state of a run, derived from its events."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field

from alrpc.events import (
    Checkpoint,
    Chosen,
    Clock,
    Coordinator,
    Evaluation,
    Event,
    Finished,
    Job,
    Losses,
    Ready,
    Run,
    Slow,
    StageTimes,
    Start,
    Status,
    Unwritten,
)
from alrpc.telemetry.bottleneck import find_bottleneck, find_slow_link

RECENT = 5.0  # seconds over which the rate is averaged


@dataclass
class StageProgress:
    """The state of a stage, as last reported."""

    components: list[int] = field(default_factory=list)
    device: str = ""
    host: str = ""
    step: int = 0
    epoch: int = 0
    """Number of epochs that it has ended."""
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    packet: tuple[str, int, int] | None = None
    """Kind, epoch and step of the packet that it last reported to work on."""
    in_flight: int | None = None
    """Packets sent to it that it has not begun; None where nothing is sent."""
    in_state: float = 0.0
    """Seconds that it had been in its state when it last reported."""


@dataclass
class Progress:
    """The state of a run; `apply` updates it with each event."""

    title: str
    engine: str
    stages: dict[int, StageProgress]
    epochs: int
    window: int
    """`pipeline.window`."""
    micro_batches: int = 0
    """Number of micro-batches in an epoch; 0 until the data is there."""
    samples: int = 0
    """Number of samples in an epoch."""
    test_samples: int | None = None
    """Number of samples in the test split."""
    validation_samples: int | None = None
    """Number of samples in the validation split; None without one."""
    command: list[str] = field(default_factory=list)
    """The command that started or resumed the run."""
    commit: str | None = None
    """The commit of the working directory, if it is in a git repository."""
    packets: str | None = None
    """How packets travel between stages on GPUs, and why."""
    losses: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)
    """{epoch: {component: {loss name: value}}}, as last reported; nan where no loss was finite."""
    metric: str = "accuracy"
    evaluations: dict[int, list[float]] = field(default_factory=dict)
    """For each epoch, the score of every exit: on the validation split if there is one, else on the test split."""
    metrics: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    """For each epoch, the further metrics of every exit by name, of the same split."""
    tested: Evaluation | None = None
    """The evaluation of the test split at the end of the run: with a validation split, the only one."""
    chance: float | None = None
    """The score that guessing has, where the metric has one."""
    about_exits: str = ""
    """What the objective says of the exits at the beginning."""
    digests: dict[int, list[str]] = field(default_factory=dict)
    """For each stage, the digests of its components."""
    parameters: dict[str, int] = field(default_factory=lambda: {"effective": 0, "affiliated": 0})
    fed: float | None = None
    """Monotonic time at which the first micro-batch was sent."""
    ended: float | None = None
    """Monotonic time at which the last stage finished."""
    coordinator_memory: int = 0
    """Peak memory of the coordinator in bytes; 0 without a coordinator."""
    chosen: dict[str, int | str | dict] = field(default_factory=dict)
    """What was chosen for this machine, or by trials on it."""
    start: int = 0
    """Steps done before this part of the run began."""
    checkpoint: int | None = None
    """Step of the last complete checkpoint."""
    failures: list[str] = field(default_factory=list)
    """Messages of checkpoints or metrics that could not be written."""
    skipped: int = 0
    """Number of updates skipped because a loss or gradient was not finite."""
    slow: dict[int, str] = field(default_factory=dict)
    """For each stage that computes for unusually long, the message about it."""
    round_trips: dict[int, float] = field(default_factory=dict)
    """For each stage, the seconds of the fastest round trip between the coordinator and it."""
    recent: deque[tuple[float, int]] = field(default_factory=deque)
    """Monotonic times and the steps done then, over the last RECENT seconds."""

    @property
    def step(self) -> int:
        """Micro-batches that have passed through the whole network."""
        return min((stage.step for stage in self.stages.values()), default=0)

    @property
    def steps(self) -> int:
        """Micro-batches of the whole run."""
        return self.epochs * self.micro_batches

    @property
    def epoch(self) -> int:
        """The last epoch for which the losses of every stage and the scores of the exits are known."""
        return min(min((stage.epoch for stage in self.stages.values()), default=0), max(self.evaluations, default=0))

    @property
    def ready(self) -> bool:
        """Whether the data is there and every stage has its components."""
        return self.micro_batches > 0 and all(stage.components for stage in self.stages.values())

    def rate(self) -> float:
        """Training samples per second, over the last RECENT seconds."""
        if len(self.recent) < 2 or not self.micro_batches:
            return 0.0
        (first, before), (last, now) = self.recent[0], self.recent[-1]
        return (now - before) * self.samples / self.micro_batches / max(last - first, 1e-9)

    def work(self) -> tuple[dict[int, dict[str, float]], dict[int, list[int]]]:
        """For each stage, its seconds in every state and its components; nothing until all stages have reported."""
        if not all(stage.seconds for stage in self.stages.values()):
            return {}, {}
        stages = self.stages.items()
        return {number: stage.seconds for number, stage in stages}, {number: stage.components for number, stage in stages}

    def bottleneck(self) -> str:
        """A sentence about what the stages wait for; "" before any is known."""
        seconds, components = self.work()
        return self.slow_link() or find_bottleneck(seconds, components)[1]

    def slow_link(self) -> str:
        """A sentence about a link that needs a larger window; "" if there is none."""
        return find_slow_link(self.work()[0], self.step - self.start, self.round_trips, self.window)

    def unwritten(self) -> str | None:
        """The reason why the trained parameters are not on the disk, or None if they are."""
        if self.checkpoint == self.step:
            return None
        reasons = [failure for failure in self.failures if failure.startswith("no checkpoint")]
        return f"the trained parameters could not be written: {reasons[-1]}"

    @property
    def split(self) -> str:
        """The split that is evaluated after every epoch."""
        return "test" if self.validation_samples is None else "validation"

    @property
    def score(self) -> str:
        """The name of the scores after every epoch."""
        return self.metric if self.split == "test" else f"validation {self.metric}"

    def explain_exits(self, epoch: int) -> str:
        """What the objective says of exits that are still at chance; "" unless the last one is nearer to it than to the best."""
        exits = self.evaluations.get(epoch, [])
        if self.chance is None or len(exits) < 2 or exits[-1] > (self.chance + max(exits)) / 2:
            return ""
        return self.about_exits

    def note_failure(self, what: str) -> None:
        """Note, once, that something could not be written."""
        if what not in self.failures:
            self.failures.append(what)

    def apply(self, event: Event) -> None:
        """Update the state with an event."""
        match event:
            case Run():
                self.command, self.commit = event.command, event.commit
            case Job():
                self.micro_batches, self.samples, self.test_samples = event.micro_batches, event.samples, event.test_samples
                self.validation_samples = event.validation_samples
                self.packets, self.start = event.packets, event.start
                self.checkpoint = event.start or None  # what a run resumes from
                for stage in self.stages.values():
                    stage.step = event.start
            case Start():
                self.fed = time.monotonic()
            case Ready():
                stage = self.stages[event.stage]
                stage.components, stage.device, stage.host = event.components, event.device, event.host
            case Status():
                self._apply_status(self.stages[event.stage], event)
            case Clock():
                trip = 2 * event.uncertainty
                self.round_trips[event.stage] = min(trip, self.round_trips.get(event.stage, trip))
            case StageTimes():
                stage = self.stages[event.stage]
                stage.step, stage.epoch, stage.seconds = event.step, event.epoch, event.seconds
                stage.peak_memory = event.peak_memory
                self._note_step()
            case Slow():
                who = f"stage {event.stage} (rank {event.stage}, host {event.host})"
                what = f"has computed for {event.seconds:.0f} s on its {event.packet}"
                if event.locked:
                    lock = "its process runs, but some code in it keeps Python's interpreter lock"
                    what = f"has not answered for {event.seconds:.0f} s: {lock}; its last known packet: {event.packet}"
                self.slow[event.stage] = f"{who} {what}; the others wait for it"
            case Losses():
                losses = {name: math.nan if loss is None else loss for name, loss in event.losses.items()}
                self.losses.setdefault(event.epoch, {})[event.component] = losses
                self.skipped += event.skipped_updates
            case Evaluation():
                self.metric = event.metric
                if event.split == self.split:
                    self.evaluations[event.epoch] = event.exits
                    self.metrics[event.epoch] = event.metrics or {}
                if event.split == "test" and (self.split == "validation" or event.epoch == self.epochs):
                    self.tested = event
                self.chance, self.about_exits = event.chance, event.about_exits or self.about_exits
            case Checkpoint():
                self.checkpoint = event.step
            case Unwritten():
                self.note_failure(f"no checkpoint of step {event.step}: {event.cause}")
            case Coordinator():
                self.coordinator_memory = event.peak_memory
            case Chosen():
                self.chosen = event.choices
            case Finished():
                self.ended = time.monotonic()
                self.digests[event.stage] = event.digests
                self.stages[event.stage].peak_memory = event.peak_memory
                for name, count in event.parameters.items():
                    self.parameters[name] += count

    def _apply_status(self, stage: StageProgress, event: Status) -> None:
        stage.step, stage.seconds = max(event.step, self.start), event.seconds
        stage.peak_memory, stage.packet, stage.in_flight = event.peak_memory, event.packet, event.in_flight
        if event.in_state < stage.in_state:
            self.slow.pop(event.stage, None)
        stage.in_state = event.in_state
        self._note_step()

    def _note_step(self) -> None:
        now = time.monotonic()
        if self.step == self.start:
            self.recent = deque([(self.fed or now, self.start)])  # the rate counts from the first micro-batch
        else:
            self.recent.append((now, self.step))
        while len(self.recent) > 1 and now - self.recent[0][0] > RECENT:
            self.recent.popleft()
