"""A stage's side of the control plane: the functions that the coordinator calls, and the queue of events that it fetches."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from alrpc.checkpoint import commit
from alrpc.checkpoint.resume import ResumePoint
from alrpc.config import Config, Health
from alrpc.data.dataset import WordVectors
from alrpc.events import Event, Status, ToldToEnd
from alrpc.objectives.targets import Target
from alrpc.pipeline.cause import tell_cause
from alrpc.pipeline.failures import (
    HEARTBEAT_CHECK,
    SILENT,
    hard_exit,
    kill_process,
    log_line,
    silence_limit,
    write_error_file,
)
from alrpc.pipeline.liveness import Watch
from alrpc.pipeline.placement import Placement
from alrpc.pipeline.wire import CPU
from alrpc.posix.streams import tell
from alrpc.system import peak_memory
from alrpc.timing import STATES
from alrpc.training.packet import describe_packet
from alrpc.training.stage import Stage


@dataclass(frozen=True)
class StageSpec:
    """What a stage receives when the run is set up."""

    config: Config
    sample: dict[str, Tensor]
    target: Target
    micro_batches: int
    """Number of micro-batches in an epoch."""
    components: list[int]
    """Numbers of the stage's components, from 1."""
    word_vectors: WordVectors | None
    """Initial values of an embedding; only for the stage of component 1."""
    stages: int
    device: str
    transport: str
    run: Path
    """The run's directory, in which the stage writes its checkpoints on its own host."""
    resume: ResumePoint | None = None


@dataclass(frozen=True)
class Greeting:
    """The coordinator's first call."""

    host: str
    pid: int
    timeout: float
    """The configuration's health.timeout, which holds from now on."""


class Endpoint:
    """The state of a stage's process that the coordinator's calls access; they run on threads of the control plane."""

    def __init__(self):
        self.placement: Placement | None = None
        self.spec: StageSpec | None = None
        self.stage: Stage | None = None
        self.dismissed = threading.Event()
        self.told_to_end = False
        self.left = False
        """Whether this process no longer waits for calls."""
        self.greeting: Greeting | None = None
        self._watch = Watch([0], silence_limit(Health().timeout))
        self._specs: queue.SimpleQueue[StageSpec] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    @property
    def number(self) -> int:
        return self.placement.stage

    def emit(self, event: Event) -> None:
        """Queue an event for the coordinator."""
        self._events.put(event)

    def await_spec(self) -> StageSpec:
        self.spec = self._specs.get()
        return self.spec

    def ask_to_end(self) -> float:
        """Request a checkpoint and the end of the run; returns the seconds to wait for them, 0 if there is nothing to save yet."""
        self.told_to_end = True
        if self.spec is None:
            return 0.0
        self.emit(ToldToEnd(self.number))
        return self.spec.config.checkpoint.grace

    def status(self) -> Status:
        """The stage's current status."""
        if self.stage is not None:
            return self.stage.status()
        nothing = dict.fromkeys(STATES, 0.0)
        return Status(self.number, 0, None, 0, 0, None, 0.0, nothing, peak_memory(CPU))

    def poll(self, timeout: float) -> list[Event]:
        """See the function `poll` of this module."""
        self._watch.heard(0)
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            events.append(self._events.get(timeout=timeout))
            while True:
                events.append(self._events.get_nowait())
        return [*events, self.status()]

    def greet(self, greeting: Greeting) -> Placement:
        self.greeting = greeting
        self._watch.limit = silence_limit(greeting.timeout)
        self._watch.heard(0)
        return self.placement

    def set_up(self, spec: StageSpec) -> None:
        self._specs.put(spec)

    def watch_coordinator(self) -> None:
        """End this process when the coordinator has not called for too long, because it is frozen, or its host or network is lost."""
        threading.Thread(target=self._watch_coordinator, name="watch-coordinator", daemon=True).start()

    def _watch_coordinator(self) -> None:
        watch, told = self._watch, False
        watch.heard(0)
        while not watch.is_lost(0):
            if watch.is_stuck(0) and not told:
                self._tell_stuck()
                told = True
            time.sleep(HEARTBEAT_CHECK)
            if self.left:
                return
            watch.look()
        message = (
            f"{self._coordinator()} has not been heard of for {watch.limit:.0f} s: {SILENT}; "
            f"last packet of stage {self.number}: {describe_packet(self.status().packet)}; log: {self.placement.log}"
        )
        log_line(message)
        write_error_file(message, 1)
        tell_cause(message)
        if self.greeting:
            kill_process(self.greeting.pid)
        hard_exit(1)

    def _coordinator(self) -> str:
        host = f", host {self.greeting.host}" if self.greeting else ""
        return f"the coordinator (rank 0{host})"

    def _tell_stuck(self) -> None:
        """Say once that the coordinator's interpreter lock is kept, which it cannot say itself."""
        message = (
            f"{self._coordinator()} has not called for {self._watch.silence(0):.0f} s, but its process runs: some code in it keeps "
            "Python's interpreter lock; it is waited for"
        )
        log_line(message)
        if self.number == 1:
            tell(f"alrpc: {message}")


endpoint = Endpoint()
"""The only global object of a process; it is needed because RPC calls functions of modules."""


# ---- called by the coordinator


def greet(greeting: Greeting) -> Placement:
    """Receive the coordinator's first call; returns the stage's placement."""
    return endpoint.greet(greeting)


def set_up(spec: StageSpec) -> None:
    endpoint.set_up(spec)


def poll(timeout: float) -> list[Event]:
    """The events since the last call, and the stage's status; waits up to `timeout` seconds for the first event."""
    return endpoint.poll(timeout)


def read_clock() -> float:
    """Seconds on the clock of this stage's spans."""
    return time.perf_counter()


def prune(step: int, kept: list[int]) -> None:
    """Remove this host's files of all checkpoints before a step, except of those that are kept."""
    if endpoint.spec is not None:
        commit.prune(endpoint.spec.run, step, kept)


def dismiss() -> None:
    endpoint.dismissed.set()
