"""A stage's side of the control plane: what the coordinator may call, and what the stage leaves there to be fetched."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from alrpc.checkpoint import Files
from alrpc.component import Target
from alrpc.config import Config
from alrpc.data.dataset import WordVectors
from alrpc.pipeline.control import SILENCE
from alrpc.pipeline.topology import Place
from alrpc.timing import Timing
from alrpc.training.optimizer import Recipe


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
    resume: Resume | None = None


class Status:
    """Where the stage is; written by its main thread, read by `poll`."""

    place: Place
    step = 0
    timing = Timing()
    heard = time.monotonic()


status = Status()
dismissed = threading.Event()
_plan: queue.SimpleQueue[Plan] = queue.SimpleQueue()
_events: queue.SimpleQueue[dict] = queue.SimpleQueue()


def tell(event: str, **fields) -> None:
    """Leave an event for the coordinator."""
    _events.put({"event": event, "stage": status.place.stage, **fields})


def await_plan() -> Plan:
    return _plan.get()


def watch_coordinator() -> None:
    """End this process when the coordinator has not called for long: its host or the network is gone."""

    def watch() -> None:
        status.heard = time.monotonic()
        while time.monotonic() - status.heard < SILENCE:
            time.sleep(1)
        print(f"stage {status.place.stage}: no word from the coordinator for {SILENCE:.0f} s", flush=True)
        os._exit(1)

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
    return [*events, {"event": "status", "stage": status.place.stage, "step": status.step, "seconds": status.timing.read()}]


def dismiss() -> None:
    dismissed.set()
