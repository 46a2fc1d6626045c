"""A run's figures for TensorBoard; needs the extra `tensorboard`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alrpc.errors import UserError
from alrpc.observe.bottleneck import share
from alrpc.observe.progress import Progress
from alrpc.timing import WAITING, WORKING

FOLDER = "tensorboard"  # in the run's directory
MIB = 1 << 20


def check_tensorboard() -> None:
    """Raises UserError when the package is not there."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("observe.tensorboard: needs the extra: pip install 'alrpc[tensorboard]' (tensorboard is missing)")


@contextmanager
def logging(directory: Path, progress: Progress) -> Iterator[Callable[[dict], None]]:
    """Write scalars as a run tells its events, and its timeline as an image when it has ended; gives what to call with each event.

    Scalars are by component or stage, against the number of micro-batches: losses and accuracy (or mse) of its exit; shares of
    working and waiting of a stage's time and its peak memory, MiB; samples a second.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory / FOLDER))

    def write(event: dict) -> None:
        kind, stage = event["event"], event.get("stage")
        if kind == "losses":
            for name in ("associated_loss", "autoencoder_loss"):
                if event[name] is not None:
                    writer.add_scalar(f"{name}/component {event['component']}", event[name], event["step"])
        elif kind == "evaluation":
            for number, score in enumerate(event["exits"], 1):
                writer.add_scalar(f"{event['metric']}/exit {number}", score, event["epoch"] * progress.micro_batches)
        elif kind == "stage":
            for name, states in (("works", WORKING), *((state, (state,)) for state in WAITING)):
                writer.add_scalar(f"{name}/stage {stage}", share(event["seconds"], *states), event["step"])
            writer.add_scalar(f"peak_memory_MiB/stage {stage}", event["peak_memory"] / MIB, event["step"])
            writer.add_scalar("samples_per_second", progress.rate(), event["step"])

    try:
        yield write
        with suppress(UserError):  # a run of a few packets has no timeline
            _write_timeline(writer, directory, progress.step)
    finally:
        writer.close()


def _write_timeline(writer, directory: Path, step: int) -> None:
    from matplotlib.image import imread

    from alrpc.observe.spans import read_record
    from alrpc.observe.timeline import choose_window, draw

    picture = directory / FOLDER / "timeline.png"
    draw([choose_window(read_record(directory))], [picture])
    writer.add_image("timeline", imread(picture)[..., :3], step, dataformats="HWC")
    picture.unlink()
