"""The coordinator's main thread: polls the stages, detects failed, hung and slow ones, and decides which one to name.

A dead process is detected by the launcher or by its broken connection. A frozen, isolated or hung process only stops
answering, which `alrpc.pipeline.liveness` tells from one whose interpreter lock is kept. `alrpc.pipeline.failures` describes who
reports first, and after what time.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from alrpc.errors import StageFailed
from alrpc.events import Event, Failure, Finished, Slow, Status
from alrpc.pipeline import endpoint, rpc
from alrpc.pipeline.clocks import Clocks
from alrpc.pipeline.failures import (
    BLAME_DELAY,
    FAILURE_WINDOW,
    POLL_PAUSE,
    POLL_TIMEOUT,
    SILENT,
    PeerLost,
    StageLost,
    describe_failure,
)
from alrpc.pipeline.feeder import FeedStatus
from alrpc.pipeline.liveness import Watch
from alrpc.pipeline.placement import Placement
from alrpc.timing import WAITING
from alrpc.training.packet import describe_packet

Call = Callable[..., rpc.Call]
"""(stage, function, *arguments) -> an outstanding call."""


def monitor(
    feeding: Future,
    health: Health,
    emit: Callable[[Event], None],
    call: Call = rpc.Call,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Poll every stage until all have finished.

    Args:
        feeding: the future of the feeding thread.
        call, now, pause: the transport and the clock.

    Raises:
        StageFailed: when a stage reports its failure, or does not answer and no other process reports why, or the run stalls.
        UserError: raised by the feeding thread.
    """
    stages = range(1, len(health.placements) + 1)
    finished: set[int] = set()
    evidence = Evidence()
    polls: dict[int, rpc.Call] = {}
    clocks = Clocks(len(stages), call, now)
    while len(finished) < len(stages):
        health.watch.look()
        for stage in stages:  # also finished stages, which would otherwise take the coordinator for lost
            for event in poll_stage(stage, polls, evidence, health.watch, call):
                if isinstance(event, Failure):
                    evidence.failed[stage] = now(), event
                    continue
                if isinstance(event, Status):
                    health.receive(event)
                    event = replace(event, in_flight=max(0, health.sent_to(stage) - event.received))
                elif isinstance(event, Finished):
                    finished.add(stage)
                emit(event)
        for event in clocks.poll():
            emit(event)
        if feeding.done() and (error := feeding.exception()) is not None:
            evidence.add_feeding_error(error, now())
        if guilty := blame(evidence, now()):
            raise failure_of(health, *guilty)
        if evidence.is_empty:
            check_progress(health, emit)
        pause(POLL_PAUSE)


def poll_stage(stage: int, polls: dict[int, rpc.Call], evidence: Evidence, watch: Watch, call: Call) -> list[Event]:
    """The events of a stage's outstanding poll, if it has been answered; starts a poll if none is outstanding."""
    if stage in evidence.lost:
        return []
    try:
        if stage not in polls:
            polls[stage] = call(stage, endpoint.poll, POLL_TIMEOUT)
        if polls[stage].ended is None:
            check_silence(stage, watch)
            return []
        events = polls.pop(stage).result()
    except StageLost as error:
        polls.pop(stage, None)
        evidence.lost[stage] = error
        return []
    watch.heard(stage)
    return events


def check_silence(stage: int, watch: Watch) -> None:
    """Raise StageLost if a stage has shown no sign of life for too long."""
    if watch.is_lost(stage):
        raise StageLost(stage, f"has not answered for {watch.limit:.0f} s: {SILENT}", silent=True)


def await_answers(calls: Sequence[rpc.Call], watch: Watch) -> list[Any]:
    """Wait for the results of calls, as long as the stages live.

    Raises:
        StageLost: when a stage is lost.
    """
    for call in calls:
        while call.ended is None:
            watch.look()
            check_silence(call.stage, watch)
            time.sleep(POLL_PAUSE)
        watch.heard(call.stage)
    return [call.result() for call in calls]


@dataclass
class Evidence:
    """Evidence of stages that failed or were lost."""

    failed: dict[int, tuple[float, Failure]] = field(default_factory=dict)
    """By stage: when its failure was received, and the failure."""
    lost: dict[int, StageLost] = field(default_factory=dict)
    """By stage: the error of a call to it."""
    severed: StageLost | None = None
    """Set when the feeding thread has lost its connection to stage 1."""

    @property
    def is_empty(self) -> bool:
        return not (self.failed or self.lost or self.severed)

    def add_feeding_error(self, error: BaseException, now: float) -> None:
        """Add an error of the feeding thread; raises it again if it is not due to a stage."""
        if isinstance(error, PeerLost):
            self.severed = self.severed or StageLost(1, f"is gone: {error}", when=now)
        elif isinstance(error, StageLost):
            self.lost.setdefault(error.stage, error)
        else:
            raise error


def blame(evidence: Evidence, now: float) -> tuple[int, str, bool] | None:
    """The stage to name, the cause, and whether a restart may succeed; None if there is no evidence, or it is too early to decide.

    Among failed stages this is the earliest in the pipeline, since values that are not finite also reach later stages. Among lost
    stages it is the one that was lost first. If only the feeding thread has lost its connection, it is stage 1.
    """
    failed = evidence.failed
    if failed and now - min(when for when, _ in failed.values()) > FAILURE_WINDOW:
        stage = min(failed)
        event = failed[stage][1]
        return stage, f"failed: {event.cause}", event.retryable
    suspects = evidence.lost or ({1: evidence.severed} if evidence.severed else {})
    if not suspects:
        return None
    stage, first = min(suspects.items(), key=lambda item: item[1].when)
    if first.silent:  # no other process can know the cause, and all stages of a host stop answering at the same time
        stage = min(number for number, other in suspects.items() if other.silent)
    return (stage, str(first), True) if now - first.when > (FAILURE_WINDOW if first.silent else BLAME_DELAY) else None


def failure_of(health: Health, stage: int, cause: str, retryable: bool = True) -> StageFailed:
    """The exception to raise for a stage."""
    placement = health.placements[stage - 1]
    message = describe_failure(stage, placement.host, cause, health.last_packet(stage), placement.log)
    return StageFailed(message, retryable)


def check_progress(health: Health, emit: Callable[[Event], None]) -> None:
    """Emit events for slow stages; raises StageFailed when the loader or a link has stalled."""
    for event in health.slow_stages():
        emit(event)
    if trouble := health.stalled_loader():
        raise StageFailed(f"the coordinator (rank 0, host {socket.gethostname()}) hangs: {trouble}")
    if broken := health.stalled_link():
        raise failure_of(health, *broken)


class Health:
    """The health of the run, judged from the statuses of all stages. Its times are those of the watch, in which a process that was
    suspended does not age."""

    def __init__(self, placements: list[Placement], feed: FeedStatus, watch: Watch):
        self.feed = feed
        self.watch = watch
        self.limit = watch.limit
        self.placements = placements
        self.statuses: dict[int, Status] = {}
        """The last status of each stage."""
        self.stalled: dict[int, tuple[int, float, float]] = {}
        """For each waiting stage: packets received, since when it has waited for what was sent, and when its last status came."""
        self.reported: dict[int, int] = {}
        """For each stage: packets received when it was last reported as slow."""
        self.reading: tuple[int | None, float] = (None, 0.0)
        """The number of the micro-batch that the feeding thread waits for, and since when; None if it is not waiting."""

    def receive(self, status: Status) -> None:
        """Receive the status of a stage."""
        stage, now = status.stage, self.watch.awake
        self.statuses[stage] = status
        if not (self.waits_for_sent(stage) or self.waits_for_feedback(stage)):
            self.stalled.pop(stage, None)
        else:
            known, since, _ = self.stalled.get(stage, (None, now, now))
            self.stalled[stage] = (status.received, since if known == status.received else now, now)

    def waits_for_sent(self, stage: int) -> bool:
        """Whether a stage waits for a packet that was sent to it."""
        status = self.statuses[stage]
        return status.state == "waiting_to_receive" and self.sent_to(stage) > status.received

    def waits_for_feedback(self, stage: int) -> bool:
        """Whether a stage waits for the next one, which has done all that it can: what that one has sent back is under way."""
        following = self.statuses.get(stage + 1)
        if following is None or self.statuses[stage].state != "waiting_to_send":
            return False
        return following.state == "waiting_to_receive" and self.sent_to(stage + 1) <= following.received

    def sent_to(self, stage: int) -> int:
        """Packets sent to a stage, by the last status of the process before it."""
        if stage == 1:
            return self.feed.sent
        return self.statuses[stage - 1].sent if stage - 1 in self.statuses else 0

    def last_packet(self, stage: int) -> str:
        """The last packet of a stage, by its last status."""
        return describe_packet(self.statuses[stage].packet if stage in self.statuses else None)

    def stalled_loader(self) -> str | None:
        """The message for a stalled data loader; None if it is not stalled. Call this regularly."""
        reading, now = self.feed.reading, self.watch.awake
        if self.reading[0] != reading:
            self.reading = reading, now
        waited = now - self.reading[1]
        if reading is None or waited <= (max(self.limit, self.feed.starting) if reading == 0 else self.limit):
            return None
        return f"the loader of data has given nothing for {waited:.0f} s, after {reading} micro-batches"

    def stalled_link(self) -> tuple[int, str] | None:
        """The stage to which a link has stalled, and the message; a frozen stage is found by the timeout of its call instead."""
        for stage, (received, since, last) in sorted(self.stalled.items()):
            if last - since <= self.limit:
                continue
            waited = f"has waited {last - since:.0f} s for"
            if self.waits_for_feedback(stage):
                host = self.placements[stage].host
                return stage, f"{waited} feedback that stage {stage + 1} (host {host}) has sent: the network is lost"
            if self.waits_for_sent(stage):
                host = self.placements[stage - 2].host if stage > 1 else "the coordinator's"
                sender = f"stage {stage - 1} (host {host})" if stage > 1 else "the coordinator"
                return stage, f"{waited} packet {received + 1}, which {sender} has sent: the network is lost"
        return None

    def slow_stages(self) -> Iterator[Slow]:
        """An event for each stage that has newly exceeded the time limit in one state of computing, or in silence."""
        for stage, status in self.statuses.items():
            locked = self.watch.is_stuck(stage)
            seconds = self.watch.silence(stage) if locked else status.in_state
            is_long = locked or (status.state not in (None, *WAITING) and seconds > self.limit)
            if is_long and self.reported.get(stage) != status.received:
                self.reported[stage] = status.received
                host, packet = self.placements[stage - 1].host, describe_packet(status.packet)
                yield Slow(stage, host, round(seconds, 1), status.step, packet, locked)
