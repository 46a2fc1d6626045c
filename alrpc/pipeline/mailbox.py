"""A stage's side of the control plane: what the coordinator may call, and what the stage leaves there to be fetched."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alrpc import checkpoint
from alrpc.checkpoint import Files
from alrpc.component import Target
from alrpc.config import Config, Health
from alrpc.data.dataset import WordVectors
from alrpc.pipeline.health import patience
from alrpc.pipeline.packet import describe_packet
from alrpc.pipeline.topology import Place
from alrpc.process import kill_beside, leave, log_line, tell_agent
from alrpc.timing import Timing, peak_memory
from alrpc.training.optimizer import Recipe

NAP = 1.0  # seconds


@dataclass(frozen=True)
class Resume:
    """Where a run goes on from."""

    directory: Path
    """The checkpoint's."""
    step: int
    """Steps that it holds."""
    micro_batches: int
    """Of an epoch when it was taken."""
    files: Files


@dataclass(frozen=True)
class Plan:
    """What a stage is told when the run is set up."""

    config: Config
    sample: dict[str, Tensor]
    target: Target
    recipe: Recipe
    components: list[int]
    """Numbers of the stage's components, from 1."""
    word_vectors: WordVectors | None
    """Only for the stage of component 1: an embedding starts from them."""
    stages: int
    device: str
    transport: str
    run: Path
    """The run's directory, below which the stage's host keeps its components."""
    coordinator: tuple[str, int]
    """The host that it is on, and its process there."""
    resume: Resume | None = None


class Status:
    """Where the stage is; written by its main thread, read by `poll`."""

    place: Place
    coordinator: tuple[str, int] | None = None
    """Its host and process."""
    run: Path | None = None
    """The run's directory on this host."""
    step = 0
    packet: tuple[str, int, int] | None = None
    """Kind, epoch and step of the last one that came."""
    received = 0
    sent = 0
    """Packets."""
    timing = Timing()
    device = torch.device("cpu")
    patience = patience(Health().timeout)
    """Seconds without a word from the coordinator after which it counts as lost."""
    heard = time.monotonic()
    told_to_end = False
    grace = 0.0
    """Seconds that SIGTERM leaves for a checkpoint; none before there is anything to keep."""

    def read(self) -> dict:
        state, in_state = self.timing.state()
        return {
            "stage": self.place.stage,
            "step": self.step,
            "packet": self.packet,
            "received": self.received,
            "sent": self.sent,
            "state": state,
            "in_state": in_state,
            "seconds": self.timing.read(),
            "peak_memory": peak_memory(self.device),
        }


status = Status()
dismissed = threading.Event()
_plan: queue.SimpleQueue[Plan] = queue.SimpleQueue()
_events: queue.SimpleQueue[dict] = queue.SimpleQueue()


def tell(event: str, **fields) -> None:
    """Leave an event for the coordinator."""
    _events.put({"event": event, "stage": status.place.stage, **fields})


def await_plan() -> Plan:
    plan = _plan.get()
    status.patience, status.coordinator = patience(plan.config.health.timeout), plan.coordinator
    status.run, status.grace = plan.run, plan.config.checkpoint.grace
    return plan


def told_to_end() -> float:
    """Ask for the end of the run, after a checkpoint; gives the seconds that there are for it."""
    status.told_to_end = True
    if status.grace:
        tell("told_to_end")
    return status.grace


def watch_coordinator() -> None:
    """End this process when the coordinator has not called for long: it is frozen, or its host or the network is gone."""

    def watch() -> None:
        status.heard = asleep = time.monotonic()
        while (now := time.monotonic()) - status.heard < status.patience:
            if now - asleep > 2 * NAP:  # this process was frozen itself
                status.heard = now
            asleep = now
            time.sleep(NAP)
        host = f", host {status.coordinator[0]}" if status.coordinator else ""
        message = (
            f"the coordinator (rank 0{host}) has not been heard of for {status.patience:.0f} s: it is frozen, or its host or the "
            f"network is lost; last packet of stage {status.place.stage}: {describe_packet(status.packet)}; log: {status.place.log}"
        )
        log_line(message)
        tell_agent(message, 1)
        if status.coordinator:
            kill_beside(status.coordinator[1])
        leave(1)

    threading.Thread(target=watch, name="watch-coordinator", daemon=True).start()


# ---- called by the coordinator, on threads of the control plane


def describe() -> Place:
    return status.place


def set_up(plan: Plan) -> None:
    _plan.put(plan)


def poll(patience: float) -> list[dict]:
    """What happened since the last call, and where the stage is now; waits so many seconds for something to happen."""
    status.heard = time.monotonic()
    events = []
    with contextlib.suppress(queue.Empty):
        events.append(_events.get(timeout=patience))
        while True:
            events.append(_events.get_nowait())
    return [*events, {"event": "status", **status.read()}]


def read_clock() -> float:
    """Seconds on the clock that this stage's moments are taken from."""
    return time.perf_counter()


def prune(step: int, kept: list[int]) -> None:
    if status.run is not None:
        checkpoint.prune(status.run, step, kept)


def dismiss() -> None:
    dismissed.set()
