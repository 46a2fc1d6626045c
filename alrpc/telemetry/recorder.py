"""Records a run: metrics.jsonl and timings.jsonl while it is under way, summary.json when it has finished."""

from __future__ import annotations

import json
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console

from alrpc import __version__, events, rundir
from alrpc.config import Config
from alrpc.errors import StageFailed, UserError, error_line
from alrpc.events import Event, Run, Start, Status
from alrpc.network import combine_digests
from alrpc.system import command_line, working_commit
from alrpc.telemetry.loggers import DrawTimeline, loggers
from alrpc.telemetry.progress import Progress, StageProgress
from alrpc.telemetry.terminal import show
from alrpc.timing import computing
from alrpc.training.packet import describe_packet

NOTE_EVERY = 0.2  # seconds between two updates of logs/reached


@contextmanager
def recorder(
    config: Config,
    directory: Path,
    engine: str,
    stages: int,
    quiet: bool,
    stdout: TextIO | None = None,
    verbose: bool = False,
    appending: bool = False,
    *,
    draw_timeline: DrawTimeline,
) -> Iterator[tuple[Progress, Callable[[Event], None]]]:
    """Record a run's events in its files and show them; yields the progress, and the function to call with each event.

    Args:
        engine: pipeline, sequential, or the name of a baseline.
        stages: number of training processes.
        verbose: print a line for each event in place of a live view.
        appending: append to the metrics.jsonl of a run that is resumed; its times count from now.
        draw_timeline: draws the timeline that TensorBoard shows.
    """
    learns = config.objective.name if engine in events.ENGINES else engine
    where = "sequential" if engine == "sequential" else f"{stages} stage{'s' if stages > 1 else ''}"
    title = f"{config.model.name} on {config.data.name}, {learns}, {where}"
    of_stages = {number: StageProgress() for number in range(1, stages + 1)}
    progress = Progress(title, engine, of_stages, config.train.epochs, config.pipeline.window)
    lock = threading.Lock()  # the threads that feed and that commit checkpoints emit events too
    with (
        Files(directory, appending, notes_place=engine == "pipeline") as files,
        show(progress, quiet, Console(file=stdout or sys.stdout), verbose) as refresh,
        loggers(config, directory, progress, draw_timeline) as log,
    ):

        def record(event: Event) -> None:
            with lock:
                progress.apply(event)
                try:
                    files.write(event, progress)
                except OSError as error:  # a full disk is no reason to stop learning
                    progress.note_failure(f"{Path(error.filename).name} lacks lines: {error.strerror}")
                log(event)
                refresh(event)

        record(Run(title, engine, stages, command_line(), working_commit()))
        yield progress, record


class Files:
    """The files of a run that grow while it is under way."""

    def __init__(self, directory: Path, appending: bool, notes_place: bool):
        self._directory, self._notes_place = directory, notes_place
        self._metrics, self._timings = (rundir.open_lines(directory / name) for name in (rundir.METRICS, rundir.TIMINGS))
        if not appending:
            self._metrics.truncate(0)
        self._began = time.monotonic()
        self._noted = 0.0
        self._pending: list[Event] = []  # events that are not in timings.jsonl yet

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_) -> None:
        self._metrics.close()
        self._timings.close()

    def write(self, event: Event, progress: Progress) -> None:
        """Write an event to the files that keep it.

        Raises:
            OSError: when the file that it names cannot be written; the event is not in it then.
        """
        if isinstance(event, Status) and self._notes_place and time.monotonic() - self._noted > NOTE_EVERY:
            self._noted = time.monotonic()
            with suppress(OSError):  # the next note will do
                (self._directory / rundir.REACHED).write_text(json.dumps(reached(progress)), encoding="utf-8")
        if isinstance(event, Start):  # the spans of an earlier part of the run are not kept
            self._timings.truncate(0)
        if isinstance(event, events.TIMINGS):
            self._pending.append(event)
        if self._pending and progress.fed is not None:
            pending, self._pending = self._pending, []
            rundir.append_lines(self._timings, map(events.to_json, pending))
        if isinstance(event, events.METRICS):
            now = round(time.monotonic() - self._began, 3)
            rundir.append_lines(self._metrics, [{**events.to_json(event), "time": now}])


def ignore(event: Event) -> None:
    """No-op event handler."""


def reached(progress: Progress) -> dict:
    """The contents of logs/reached: the steps that have passed through the run, and the last packet of each stage."""
    packets = {number: describe_packet(stage.packet) for number, stage in progress.stages.items()}
    return {"step": progress.step, "packets": packets}


def write_summary(directory: Path, progress: Progress, started: float) -> dict:
    """Write summary.json, the last file of a run: only a finished run has it.

    Args:
        started: when the command that has finished the run was started, on the system's clock.

    Raises:
        StageFailed: when it cannot be written; the message tells the result.
    """
    restarts, failures = [], progress.failures
    try:
        restarts = rundir.read_restarts(directory)
    except UserError as error:  # no reason to lose the result of a training
        failures = [*failures, str(error)]
    tested = progress.tested
    digests = [digest for _, of_stage in sorted(progress.digests.items()) for digest in of_stage]
    summary = {
        "alrpc": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "command": progress.command,
        "commit": progress.commit,
        "engine": progress.engine,
        "stages": len(progress.stages),
        "epochs": progress.step // progress.micro_batches,
        "steps": progress.step,
        "samples": progress.samples,
        "test_samples": progress.test_samples,
        f"test_{tested.metric}": tested.exits[-1],
        "exits": tested.exits,
        **({"metrics": tested.metrics} if tested.metrics else {}),
        **(of_validation(progress) if progress.split == "validation" else {}),
        "parameters_sha256": combine_digests(digests),
        "parameters": progress.parameters,
        "samples_per_second": (progress.step - progress.start)
        / progress.micro_batches
        * progress.samples
        / (progress.ended - progress.fed),
        "resumed_at_step": progress.start,
        "restarts": restarts,
        "checkpoint_failures": failures,
        "skipped_updates": progress.skipped,
        "wall_seconds": time.time() - started,
        "coordinator_peak_memory_bytes": progress.coordinator_memory,
        "chosen": progress.chosen,
        "per_stage": [
            {
                "stage": number,
                "components": stage.components,
                "host": stage.host,
                "device": stage.device,
                "seconds_computing": computing(stage.seconds),
                **{f"seconds_{state}": seconds for state, seconds in stage.seconds.items()},
                "peak_memory_bytes": stage.peak_memory,
            }
            for number, stage in progress.stages.items()
        ],
    }
    try:
        rundir.write_json(directory / rundir.SUMMARY, summary)
        (directory / rundir.REACHED).unlink(missing_ok=True)
    except OSError as error:
        raise StageFailed(f"{error_line(error)}; the result is: {last_line(summary, directory)}", retryable=False) from error
    return summary


def of_validation(progress: Progress) -> dict:
    """What the summary of a run with a validation split says of it; the score is that of the epoch that was tested."""
    epoch = progress.tested.epoch
    return {
        "validation_samples": progress.validation_samples,
        f"validation_{progress.metric}": progress.evaluations[epoch][-1],
        "tested_epoch": epoch,
        "ended_early": progress.step < progress.steps,
    }


def last_line(summary: dict, directory: Path) -> str:
    """The last line that a training command prints."""
    metric = next(name.removeprefix("test_") for name in summary if name.startswith("test_") and name != "test_samples")
    metrics = "".join(f", {name} {exits[-1]:.4f}" for name, exits in summary.get("metrics", {}).items())
    of_epoch = f" of epoch {summary['tested_epoch']}" if "tested_epoch" in summary else ""
    epochs = f"{summary['epochs']} epochs in {summary['wall_seconds']:.1f} s"
    return f"test {metric} {summary[f'test_{metric}']:.4f}{metrics}{of_epoch} after {epochs} · {directory}"
