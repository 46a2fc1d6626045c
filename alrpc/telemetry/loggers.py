"""Logs a run for TensorBoard; needs the extra `tensorboard`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alrpc.events import Evaluation, Event, Losses, StageTimes
from alrpc.telemetry.bottleneck import share
from alrpc.telemetry.progress import Progress
from alrpc.timing import WAITING, WORKING

FOLDER = "tensorboard"  # in the run's directory
MIB = 1 << 20
DrawTimeline = Callable[[Path, Path], bool]
"""(run, PNG to write) -> whether the run has a timeline."""


@contextmanager
def tensorboard(directory: Path, progress: Progress, draw: DrawTimeline) -> Iterator[Callable[[Event], None]]:
    """Write scalars while a run is under way and its timeline at the end; yields the function to call with each event.

    The scalars are plotted against the number of micro-batches: for each component its losses and the accuracy (or mse) of
    its exit; for each stage the shares of its time that it works and waits, and its peak memory in MiB; samples per second.
    """
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory / FOLDER))

    def write(event: Event) -> None:
        if isinstance(event, Losses):
            for name, value in event.losses.items():
                if value is not None:
                    writer.add_scalar(f"{name}_loss/component {event.component}", value, event.step)
        elif isinstance(event, Evaluation):
            split = "" if event.split == "test" else f"{event.split}_"
            for name, exits in {event.metric: event.exits, **(event.metrics or {})}.items():
                for number, score in enumerate(exits, 1):
                    writer.add_scalar(f"{split}{name}/exit {number}", score, event.epoch * progress.micro_batches)
        elif isinstance(event, StageTimes):
            for name, states in (("works", WORKING), *((state, (state,)) for state in WAITING)):
                writer.add_scalar(f"{name}/stage {event.stage}", share(event.seconds, *states), event.step)
            writer.add_scalar(f"peak_memory_MiB/stage {event.stage}", event.peak_memory / MIB, event.step)
            writer.add_scalar("samples_per_second", progress.rate(), event.step)

    try:
        yield write
        picture = directory / FOLDER / "timeline.png"
        if draw(directory, picture):
            writer.add_image("timeline", imread(picture)[..., :3], progress.step, dataformats="HWC")
            picture.unlink()
    finally:
        writer.close()
