"""torch.profiler in one process: starts and stops between two packets, and can be aligned to the clock of the spans."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from alrpc.events import Operators
from alrpc.spans import SpanRecorder
from alrpc.timing import Timing

ALIGN = "alrpc.align"  # prefix of annotations whose times are known on both clocks
TRIES = 9  # annotations, of which the shortest counts


def trace_file(directory: Path, process: int) -> Path:
    """The file of a process' torch.profiler trace."""
    return directory / "logs" / f"profile-{process}.json.gz"


class Profiler:
    """Records this process, a stage or a process of a baseline, while it works on some packets."""

    def __init__(self, device: torch.device):
        self._device = device
        self._activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        with profile(activities=self._activities):  # so that the first, slow start of torch.profiler is over
            torch.zeros(1, device=device)
        self._profile: profile | None = None
        self._align: tuple[float, str] = (0.0, "")

    def begin(self, timing: Timing) -> None:
        """Start recording at the next packet."""
        timing.spans = SpanRecorder(keep=lambda block: True)
        timing.spans.watch(self._device)
        self._profile = profile(activities=self._activities)
        self._profile.start()
        tries = []
        for number in range(TRIES):
            began = time.perf_counter()
            with record_function(f"{ALIGN}.{number}"):
                pass
            tries.append((time.perf_counter() - began, began, number))
        took, began, number = min(tries)  # the shortest one, which nothing has interrupted
        self._align = (began + took / 2, f"{ALIGN}.{number}")

    def end(self, timing: Timing) -> list[dict]:
        """Stop recording; returns the blocks of spans."""
        self._profile.stop()
        return timing.spans.take(last=True)

    def write(self, path: Path, stage: int) -> Operators:
        """Write the trace of the operators of a stage, or of a process of a baseline."""
        self._profile.export_chrome_trace(str(path))
        return Operators(stage, *self._align, path.name)
