"""torch.profiler in one process: begun and ended between two packets, on the clock that the process' moments are on."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from alrpc.moments import Moments
from alrpc.timing import Timing

ALIGN = "alrpc.align"  # an annotation whose moment is known on both clocks


def trace_file(directory: Path, process: int) -> Path:
    """Where a process leaves what torch.profiler recorded."""
    return directory / "logs" / f"profile-{process}.json.gz"


class Recorder:
    """Records this process, a stage or a baseline's, while it works on some packets."""

    def __init__(self, device: torch.device):
        self._device = device
        self._activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        with profile(activities=self._activities):  # the first time takes long
            torch.zeros(1, device=device)
        self._profile: profile | None = None
        self._align = 0.0

    def begin(self, timing: Timing) -> None:
        """From the next packet on."""
        timing.moments = Moments(keep=lambda block: True)
        timing.moments.watch(self._device)
        self._profile = profile(activities=self._activities)
        self._profile.start()
        with record_function(ALIGN):
            self._align = time.perf_counter()

    def end(self, timing: Timing) -> list[dict]:
        """Gives the blocks of moments."""
        self._profile.stop()
        return timing.moments.take(last=True)

    def write(self, path: Path) -> dict:
        """Write the operators' trace; gives the event to tell."""
        self._profile.export_chrome_trace(str(path))
        return {"event": "operators", "align": self._align, "file": path.name}
