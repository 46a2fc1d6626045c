"""The spans of a process: when it entered each state with each packet, for a timeline."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

BLOCK = 64  # packets
COMPUTING = ("forward", "backward", "update")
"""The states in which components, or a baseline's layers, work on a packet."""


class SpanRecorder:
    """The times at which a process entered its states, kept for the same blocks of packets in every process.

    The first block, the blocks whose number is a power of two, and the last two are kept, so that even a long run keeps few. On a
    GPU, where kernels run asynchronously, a kept block also has the GPU's own times, which events on its stream record.
    """

    def __init__(self, keep: Callable[[int], bool] | None = None):
        """`keep` says whether to keep the block of a given number; None for the choice above."""
        self._keep = keep or is_kept
        self._packets: list[tuple] = []
        self._entries: list[tuple] = []
        self._begun = 0
        """Number of packets that were begun."""
        self._last: dict | None = None
        """The block before the current one, unless it is already kept."""
        self._kept: list[dict] = []
        self._device: torch.device | None = None
        self._origin: tuple[torch.cuda.Event, float] | None = None
        """An event on the GPU's stream and its time on the process' clock; None unless the current block is kept."""

    def watch(self, device: torch.device) -> None:
        """Record the times of this device too, if it is a GPU."""
        self._device = device if device.type == "cuda" else None

    def enter(self, state: str | None, part: int, now: float) -> None:
        """Record that a state was entered; see `alrpc.timing.Timing.enter`."""
        event = None
        if self._origin is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        if not self._packets:
            self._entries.clear()  # the recording begins with the wait for the first packet
        self._entries.append((state, part, now, event))

    def begin_packet(self, kind: str, epoch: int, step: int, ready: float) -> None:
        """Begin the next packet, available since `ready` on this process' clock; the state entered last is the wait for it."""
        if self._begun % BLOCK == 0:
            self._end_block()
            self._origin = self._begin_on_gpu() if self._keep(self._begun // BLOCK) and self._device is not None else None
        self._packets.append((kind, epoch, step, ready, len(self._entries)))
        self._begun += 1

    def take(self, last: bool = False) -> list[dict]:
        """The kept blocks that have ended since the previous call.

        Args:
            last: whether this is the last call, which also returns the last two blocks.

        Returns:
            For each block its number `block`; `origin`, a time in seconds on this process' clock, from which all other times count
            in µs; `packets`, tuples of kind, epoch, step, time from which it was available, and index of the first entry after
            that; `entries`, tuples of state, part and time of entering; `end`; and, on a GPU, `device`, tuples of state, part,
            begin and end.
        """
        if last and self._packets:
            now = time.perf_counter()
            before = self._last
            self._entries.append((None, 0, now, None))
            self._end_block()
            self._kept += [block for block in (before, self._last) if block is not None]
            self._last = None
        kept, self._kept = self._kept, []
        return kept

    def _end_block(self) -> None:
        if not self._packets:
            return
        *entries, begins_next = self._entries
        number = (self._begun - 1) // BLOCK
        origin = entries[0][2]

        def at(moment: float) -> int:
            return round((moment - origin) * 1e6)

        block = {
            "block": number,
            "origin": origin,
            "packets": [(kind, epoch, step, at(ready), index) for kind, epoch, step, ready, index in self._packets],
            "entries": [(state, part, at(moment)) for state, part, moment, _ in entries],
            "end": at(begins_next[2]),
        }
        if self._origin is not None:
            block["device"] = self._on_gpu(self._entries, at)
        if self._keep(number):
            self._kept += [block]
        self._last = None if self._keep(number) else block
        self._packets, self._entries = [], [begins_next]

    def _begin_on_gpu(self) -> tuple[torch.cuda.Event, float]:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()  # happens only once in a kept block
        return event, time.perf_counter()

    def _on_gpu(self, entries: list[tuple], at) -> list[tuple]:
        base, moment = self._origin
        torch.cuda.synchronize(self._device)
        times = [at(moment + base.elapsed_time(event) / 1000) if event is not None else None for *_, event in entries]
        return [
            (state, part, times[index], times[index + 1])
            for index, (state, part, _, _) in enumerate(entries[:-1])
            if state in COMPUTING and times[index] is not None and times[index + 1] is not None
        ]


def is_kept(block: int) -> bool:
    """Whether a block's number is 0 or a power of two."""
    return block & (block - 1) == 0
