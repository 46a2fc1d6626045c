"""Whether other processes of the run live, as far as this process can tell.

A process shows that it lives by its calls and answers. Those need its interpreter lock, which a long call into an extension may
keep for minutes. A ping needs no lock: native threads of torch answer it. A process that is stopped, or whose host or network is
lost, answers neither. Silence counts only while the one who listens is awake, since all may have been suspended together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from alrpc.pipeline import rpc
from alrpc.pipeline.failures import LONGEST_LOOK, PING_AFTER, StageLost


class Watch:
    """A watch over other processes, given by their ranks. Call `heard` at each call or answer of one, and `look` every second."""

    def __init__(
        self,
        ranks: Iterable[int],
        limit: float,
        ping: Callable[[int], rpc.Call] = rpc.ping,
        now: Callable[[], float] = time.monotonic,
    ):
        self.limit = limit
        """Seconds without a sign of life after which a process counts as lost."""
        self.awake = 0.0
        """Seconds that this process has been awake since the watch began."""
        self._ping, self._now, self._looked = ping, now, now()
        self._heard = dict.fromkeys(ranks, 0.0)
        self._seen = dict(self._heard)
        self._asked = dict(self._heard)
        self._pings: dict[int, rpc.Call] = {}

    def heard(self, rank: int) -> None:
        """Note a call or an answer of a process."""
        self._heard[rank] = self._seen[rank] = self.awake

    def silence(self, rank: int) -> float:
        """Seconds since the last call or answer of a process."""
        return self.awake - self._heard[rank]

    def is_lost(self, rank: int) -> bool:
        """Whether a process has shown no sign of life for too long. Those of a lost host are lost together."""
        limit = self.limit if self.awake - min(self._seen.values()) <= self.limit else self.limit - PING_AFTER
        return self.awake - self._seen[rank] > limit

    def is_stuck(self, rank: int) -> bool:
        """Whether a process lives, but has neither called nor answered for too long: some code keeps its interpreter lock."""
        return self.silence(rank) > self.limit and self.awake - self._seen[rank] < 2 * PING_AFTER

    def look(self) -> None:
        """Advance the time, and ping whoever has not shown a sign of life for PING_AFTER."""
        now = self._now()
        self.awake += min(now - self._looked, LONGEST_LOOK)
        self._looked = now
        for rank in self._seen:
            if rank in self._pings and self._pings[rank].ended is not None:
                try:
                    self._pings.pop(rank).result()
                    self._seen[rank] = self._asked[rank]
                except StageLost:
                    continue
            if rank not in self._pings and self.awake - max(self._seen[rank], self._asked[rank]) > PING_AFTER:
                self._asked[rank] = self.awake
                try:
                    self._pings[rank] = self._ping(rank)
                except StageLost:
                    continue
