"""What a run leaves behind: metrics.jsonl while it runs, summary.json when it has ended well."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console

from alrpc import __version__
from alrpc.config import Config
from alrpc.network import combine_digests
from alrpc.observe import tensorboard
from alrpc.observe.progress import Progress, StageProgress
from alrpc.observe.terminal import show
from alrpc.pipeline.packet import describe_packet
from alrpc.timing import computing

RECORDED = ("start", "losses", "evaluation", "stage", "coordinator", "chosen", "checkpoint", "unwritten", "slow")
TIMED = ("run", "ready", "moments", "clock", "profile", "operators")
TIMINGS = "timings.jsonl"
RESTARTS, REACHED = Path("logs") / "restarts.jsonl", Path("logs") / "reached"
NOTE_EVERY = 0.2  # seconds between two notes of where the stages are
Report = Callable[[dict], None]


@contextmanager
def recorded(
    config: Config,
    directory: Path,
    engine: str,
    stages: int,
    quiet: bool,
    stdout: TextIO | None = None,
    appending: bool = False,
) -> Iterator[tuple[Progress, Report]]:
    """Record a run's events in metrics.jsonl and show them; gives the progress and the function to report to.

    Args:
        engine: pipeline, sequential, or a baseline's name.
        stages: processes that train.
        appending: go on with the file of a run that goes on; its times count from now.
    """
    title = f"{config.model.name} on {config.data.name}, " + (
        f"{stages} stages" if stages > 1 else "1 stage" if engine == "pipeline" else engine
    )
    progress = Progress(title, engine, {number: StageProgress() for number in range(1, stages + 1)}, config.train.epochs)
    started = time.monotonic()
    lock = threading.Lock()  # the threads that feed and that commit checkpoints report too
    with (
        (directory / "metrics.jsonl").open("ab" if appending else "wb", buffering=0) as metrics,
        (directory / TIMINGS).open("ab", buffering=0) as timings,
        show(progress, quiet, Console(file=stdout or sys.stdout)) as refresh,
        tensorboard.logging(directory, progress) if config.observe.tensorboard else nullcontext(ignore) as log,
    ):
        noted = 0.0
        heads: list[dict] = []  # what is to go into the file of timings
        is_whole = True  # the file's last line

        def write(event: dict) -> None:
            nonlocal is_whole
            line = json.dumps({**event, "time": round(time.monotonic() - started, 3)}) + "\n"
            line = line if is_whole else "\n" + line
            is_whole = metrics.write(line.encode()) == len(line)

        def report(event: dict) -> None:
            nonlocal noted
            with lock:
                progress.apply(event)
                try:
                    if event["event"] == "status" and engine == "pipeline" and time.monotonic() - noted > NOTE_EVERY:
                        noted = time.monotonic()
                        (directory / REACHED).write_text(json.dumps(where(progress)))
                    if event["event"] in RECORDED:
                        write(event)
                    if event["event"] in TIMED:
                        heads.append(event)
                    if event["event"] == "start":  # what an earlier part of the run has left is over
                        timings.truncate(0)
                    if heads and progress.fed is not None:
                        timings.write("".join(json.dumps(head) + "\n" for head in heads).encode())
                        heads.clear()
                except OSError as error:  # a full disk is no reason to stop learning
                    progress.note_failure(f"metrics.jsonl lacks lines: {error.strerror}")
                log(event)
                refresh(event)

        report({"event": "run", "title": title, "engine": engine, "stages": stages})
        yield progress, report


def ignore(event: dict) -> None:
    """For who does not want to know."""


def where(progress: Progress) -> dict:
    """For whoever finds the run dead: the steps that have passed through it, and the last packet of each stage."""
    packets = {number: describe_packet(stage.packet) for number, stage in progress.stages.items()}
    return {"step": progress.step, "packets": packets}


def read_reached(directory: Path) -> dict:
    """What `where` was noted last."""
    try:
        return json.loads((directory / REACHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"step": 0, "packets": {}}


def write_summary(directory: Path, progress: Progress, wall_seconds: float) -> dict:
    """Write summary.json, last of all: a run that has it has ended well."""
    digests = [digest for _, of_stage in sorted(progress.digests.items()) for digest in of_stage]
    summary = {
        "alrpc": __version__,
        "torch": torch.__version__,
        "engine": progress.engine,
        "stages": len(progress.stages),
        "epochs": progress.epochs,
        "steps": progress.steps,
        "samples": progress.samples,
        f"test_{progress.metric}": progress.evaluations[progress.epochs][-1],
        "exits": progress.evaluations[progress.epochs],
        "parameters_sha256": combine_digests(digests),
        "parameters": progress.parameters,
        "samples_per_second": (progress.steps - progress.start)
        / progress.micro_batches
        * progress.samples
        / (progress.ended - progress.fed),
        "resumed_at_step": progress.start,
        "restarts": restarts_of(directory),
        "checkpoint_failures": progress.failures,
        "skipped_updates": progress.skipped,
        "wall_seconds": wall_seconds,
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
    partial = directory / "summary.json.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    partial.rename(directory / "summary.json")
    (directory / REACHED).unlink(missing_ok=True)
    return summary


def restarts_of(directory: Path) -> list[dict]:
    """What the launcher noted of each restart: cause, step that it went on from, repeated_steps."""
    path = directory / RESTARTS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def last_line(summary: dict, directory: Path) -> str:
    metric = "accuracy" if "test_accuracy" in summary else "mse"
    return f"test {metric} {summary[f'test_{metric}']:.4f} after {summary['epochs']} epochs in {summary['wall_seconds']:.1f} s · {directory}"
