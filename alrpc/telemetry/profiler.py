"""torch.profiler in one process: begun and ended between two packets, on the clock that the process' moments are on."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from alrpc.events import Operators
from alrpc.spans import SpanRecorder
from alrpc.timing import Timing

ALIGN = "alrpc.align"  # annotations whose moments are known on both clocks
TRIES = 9


def trace_file(directory: Path, process: int) -> Path:
    """Where a process leaves what torch.profiler recorded."""
    return directory / "logs" / f"profile-{process}.json.gz"


class Profiler:
    """Records this process, a stage or a baseline's, while it works on some packets."""

    def __init__(self, device: torch.device):
        self._device = device
        self._activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        with profile(activities=self._activities):  # the first time takes long
            torch.zeros(1, device=device)
        self._profile: profile | None = None
        self._align: tuple[float, str] = (0.0, "")

    def begin(self, timing: Timing) -> None:
        """From the next packet on."""
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
        took, began, number = min(tries)  # the one that nothing has interrupted
        self._align = (began + took / 2, f"{ALIGN}.{number}")

    def end(self, timing: Timing) -> list[dict]:
        """Stop; gives the blocks of spans."""
        self._profile.stop()
        return timing.spans.take(last=True)

    def write(self, path: Path, stage: int) -> Operators:
        """Write the operators' trace of a stage, or a baseline's process."""
        self._profile.export_chrome_trace(str(path))
        return Operators(stage, *self._align, path.name)
