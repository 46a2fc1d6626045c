"""Whether a run still moves: what each process was last heard to do, and which of them holds it up.

Death shows by itself: the launcher sees it, or the connection breaks. What is frozen, cut off or hung only falls silent:

who                     how it shows                                                what follows
a stage                 a question to it is not answered                            the run ends
the coordinator         it asks no questions (`mailbox.watch_coordinator`)          the run ends
the loader of data      it has given nothing for long                               the run ends
a link of the pipeline  one stage has sent what the next one is still waiting for   the run ends
a slow stage            it computes for long, and answers                           it is named, and waited for
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

from alrpc.pipeline.packet import describe_packet
from alrpc.pipeline.topology import Place
from alrpc.timing import WAITING, Timing

T = TypeVar("T")
SHARE = 0.8  # of health.timeout, after which silence counts: the rest is for ending the others and for saying so


def patience(timeout: float) -> float:
    """Seconds of silence after which a process counts as lost, so that all is over within health.timeout."""
    return SHARE * timeout


class Feeding:
    """What the thread that feeds the stream does; written by it, read by whoever watches over the run."""

    def __init__(self):
        self.reading_since: float | None = None
        """Since when the loader has been asked for a micro-batch; None if it is not."""
        self.read = 0
        """Micro-batches that it has given."""
        self.sent = 0
        """Packets that were sent to stage 1."""
        self.timing = Timing()

    def watch(self, micro_batches: Iterator[T]) -> Iterator[T]:
        """The same micro-batches, noting when the loader is waited for."""
        while True:
            self.reading_since = time.monotonic()
            micro_batch = next(micro_batches, None)
            self.reading_since = None
            if micro_batch is None:
                return
            self.read += 1
            yield micro_batch


class Health:
    """What the stages' statuses say of the run as a whole."""

    def __init__(self, places: list[Place], feeding: Feeding, timeout: float):
        self.feeding = feeding
        self.limit = patience(timeout)
        self.places = places
        self.statuses: dict[int, dict] = {}
        """The last one of each stage."""
        self.missing: dict[int, tuple[int, float, float]] = {}
        """Of each stage that waits: packets received, since when more have been sent to it, and when it last said that it waits."""
        self.named: dict[int, int] = {}
        """Of each stage: packets received when it was last named as slow."""

    def hear(self, status: dict, now: float) -> None:
        """Take a stage's status in."""
        stage = status["stage"]
        self.statuses[stage] = status
        sent, received = self.sent_to(stage), status["received"]
        if status["state"] != "waiting_to_receive" or sent <= received:
            self.missing.pop(stage, None)
        else:
            known, since, _ = self.missing.get(stage, (None, now, now))
            self.missing[stage] = (received, since if known == received else now, now)

    def sent_to(self, stage: int) -> int:
        """Packets that the process before a stage has sent, as far as it was heard."""
        return self.feeding.sent if stage == 1 else self.statuses.get(stage - 1, {}).get("sent", 0)

    def last_packet(self, stage: int) -> str:
        """The last packet that a stage was heard to work on."""
        return describe_packet(self.statuses.get(stage, {}).get("packet"))

    def loader_trouble(self, now: float) -> str | None:
        """Why the run cannot go on, if it is for want of data."""
        since = self.feeding.reading_since
        if since is None or now - since <= self.limit:
            return None
        return f"the loader of data has given nothing for {now - since:.0f} s, after {self.feeding.read} micro-batches"

    def link_trouble(self) -> tuple[int, str] | None:
        """A stage that says that it waits for what was sent to it long ago, and what to say of it; one that is frozen says nothing."""
        for stage, (received, since, heard) in sorted(self.missing.items()):
            if heard - since > self.limit:
                host = self.places[stage - 2].host if stage > 1 else "the coordinator's"
                sender = f"stage {stage - 1} (host {host})" if stage > 1 else "the coordinator"
                return (
                    stage,
                    f"has waited {heard - since:.0f} s for packet {received + 1}, which {sender} has sent: the network is lost",
                )
        return None

    def slow_stages(self) -> Iterator[dict]:
        """An event for each stage that has begun to compute for longer than others would be waited for."""
        for stage, status in self.statuses.items():
            is_long = status["state"] not in (None, *WAITING) and status["in_state"] > self.limit
            if is_long and self.named.get(stage) != status["received"]:
                self.named[stage] = status["received"]
                yield {
                    "event": "slow",
                    "stage": stage,
                    "host": self.places[stage - 1].host,
                    "for": round(status["in_state"], 1),
                    "at": status["step"],
                    "packet": describe_packet(status["packet"]),
                }
