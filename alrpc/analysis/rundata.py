"""The only reader of the files that runs and comparisons leave in their directories."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from alrpc import events, rundir
from alrpc.checkpoint.commit import complete_checkpoints
from alrpc.errors import UsageError, UserError
from alrpc.events import Event
from alrpc.telemetry.bottleneck import find_bottleneck
from alrpc.timing import STATES, idle_share

E = TypeVar("E", bound=Event)
Timed = tuple[float, Event]
"""An event of metrics.jsonl and its time: seconds since the run began or was last resumed."""


def read_metrics(run: Path) -> list[Timed]:
    """Read the events that a run's metrics.jsonl holds so far; raises UserError as `read_timings`."""
    return [(tree.get("time", 0.0), event) for tree, event in _read_events(run / rundir.METRICS)]


def read_timings(run: Path) -> list[Event]:
    """Read the events that a run's timings.jsonl holds so far; none when there is no such file.

    Raises:
        UserError: naming the file, when a line lacks what it must have.
    """
    return [event for _, event in _read_events(run / rundir.TIMINGS)]


def _read_events(path: Path) -> Iterator[tuple[dict, Event]]:
    try:
        for tree in rundir.whole_lines(path):
            if (event := events.from_json(tree)) is not None:
                yield tree, event
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged: a line has no {error}") from error


@dataclass(frozen=True)
class Stage:
    """A training process of a run."""

    number: int
    components: list[int]
    device: str
    host: str
    seconds: dict[str, float]
    """Seconds spent in each of STATES; empty before its first epoch has ended."""
    peak_memory: int
    """Peak memory in bytes; 0 before its first epoch has ended."""

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk."""

    step: int
    size: int
    """Size on the disk in bytes."""


@dataclass(frozen=True)
class Run:
    """Everything that a run's directory holds, whether the run has finished, has died or is under way."""

    directory: Path
    title: str
    engine: str
    """pipeline, sequential, or the name of a baseline; "" when it is not known."""
    config: dict[str, Any]
    config_text: str
    summary: dict | None
    """Contents of summary.json; None unless the run has finished."""
    under_way: bool
    metrics: list[Timed]
    stages: list[Stage]
    checkpoints: list[Checkpoint]
    """The checkpoints that were kept."""
    restarts: list[dict]
    quality: dict | None

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @cached_property
    def losses(self) -> dict[int, list[tuple[int, dict[str, float | None]]]]:
        """For each component, its steps and their losses by name; the last values win where a step was repeated."""
        found: dict[int, dict[int, dict]] = {}
        for event in self._events(events.Losses):
            found.setdefault(event.component, {})[event.step] = event.losses
        return {component: sorted(steps.items()) for component, steps in sorted(found.items())}

    @property
    def loss_names(self) -> list[str]:
        """The names of the losses, in the objective's order."""
        return next((list(event.losses) for event in self._events(events.Losses)), [])

    @cached_property
    def curve(self) -> list[tuple[float, int, list[float]]]:
        """For each epoch: seconds since the first micro-batch (evaluation included), epoch, score of every exit.

        The seconds of a resumed run add up over its parts, without the time between them.
        """
        found: dict[int, tuple] = {}
        before, began, last = 0.0, 0.0, 0.0
        for time, event in self.metrics:
            if isinstance(event, events.Start):
                before, began = before + last - began, time
            last = time
            if isinstance(event, events.Evaluation):
                found[event.epoch] = (before + last - began, event.epoch, event.exits)
        return [found[epoch] for epoch in sorted(found)]

    @property
    def metric(self) -> str:
        return next((event.metric for event in self._events(events.Evaluation)), "accuracy")

    @property
    def scores(self) -> list[float]:
        """The last exit's score in each epoch."""
        return [exits[-1] for _, _, exits in self.curve]

    @property
    def wall_seconds(self) -> float:
        """Seconds from the begin of the run to its end, or to the last event so far."""
        return self.summary["wall_seconds"] if self.summary else self.metrics[-1][0]

    @property
    def samples_per_second(self) -> float | None:
        """Training samples per second, evaluation included; None unless the run has finished."""
        return self.summary["samples_per_second"] if self.summary else None

    @property
    def coordinator_memory(self) -> int:
        """Peak memory of the coordinator in bytes; 0 without a coordinator, or before the end."""
        return max((event.peak_memory for event in self._events(events.Coordinator)), default=0)

    @property
    def memory(self) -> dict[str, int]:
        """Peak memory of each process in bytes; GPU memory for a stage on a GPU."""
        of_stages = {self.name_of(stage): stage.peak_memory for stage in self.stages if stage.peak_memory}
        return {**({"coordinator": self.coordinator_memory} if self.coordinator_memory else {}), **of_stages}

    @property
    def idle(self) -> float | None:
        """The share of their training time that the training processes wait; None before an epoch has ended."""
        return idle_share([stage.seconds for stage in self.stages if stage.seconds])

    @property
    def skipped(self) -> dict[int, int]:
        """For each component, the number of updates skipped because a loss or gradient was not finite."""
        counts: Counter[int] = Counter()
        for event in self._events(events.Losses):
            counts[event.component] += event.skipped_updates
        return {component: count for component, count in sorted(counts.items()) if count}

    @property
    def slow(self) -> list[events.Slow]:
        return self._events(events.Slow)

    @property
    def failures(self) -> list[str]:
        """Messages of checkpoints or metrics that could not be written."""
        if self.summary:
            return self.summary["checkpoint_failures"]
        return [f"no checkpoint of step {event.step}: {event.cause}" for event in self._events(events.Unwritten)]

    @property
    def checkpoints_taken(self) -> int:
        return len({event.step for event in self._events(events.Checkpoint)})

    def name_of(self, stage: Stage) -> str:
        return f"{'stage' if self.engine == 'pipeline' else 'process'} {stage.number}"

    def bottleneck(self) -> tuple[int | None, str]:
        """The slowest stage and a sentence about it; (None, "") for a baseline, whose processes wait by schedule."""
        if self.engine != "pipeline" or not all(stage.seconds for stage in self.stages):
            return None, ""
        components = {stage.number: stage.components for stage in self.stages}
        return find_bottleneck({stage.number: stage.seconds for stage in self.stages}, components)

    def _events(self, kind: type[E]) -> list[E]:
        return [event for _, event in self.metrics if isinstance(event, kind)]


@dataclass(frozen=True)
class Comparison:
    """The directory of an `alrpc compare`."""

    directory: Path
    result: dict
    """Contents of comparison.json."""
    runs: list[Run]
    """The first run of each method that is there."""


def read(directories: list[Path]) -> tuple[list[Run], list[Comparison]]:
    """Read directories, each once, as runs and comparisons.

    Raises:
        UserError: naming the directory or file that is missing or damaged.
    """
    runs, comparisons, seen = [], [], set()
    for directory in directories:
        if not directory.is_dir():
            raise UsageError(f"{directory}: is not a directory; give that of a run or of a comparison")
        if directory.resolve() in seen:
            continue
        seen.add(directory.resolve())
        if (directory / rundir.COMPARISON).is_file():
            comparisons.append(_read_comparison(directory))
        elif (directory / rundir.CONFIG).is_file():
            runs.append(read_run(directory))
        else:
            raise UsageError(
                f"{directory}: is neither a run nor a comparison: it has no {rundir.CONFIG} and no {rundir.COMPARISON}"
            )
    return runs, comparisons


def labels(runs: list[Run]) -> list[str]:
    """A label for each run: the name of its directory, or its path if two names are the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def read_run(directory: Path) -> Run:
    """Read a run's directory; raises UserError when there are no losses and scores yet, or a file is damaged."""
    metrics = read_metrics(directory)
    if not any(isinstance(event, (events.Losses, events.Evaluation, events.StageTimes)) for _, event in metrics):
        raise UserError(f"{directory}: nothing to report: no losses and no scores in {rundir.METRICS} yet")
    text = (directory / rundir.CONFIG).read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
        title = f"{config['model']['name']} on {config['data']['name']}"
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory / rundir.CONFIG}: is not the configuration of a run: {' '.join(str(error).split())}"
        ) from error
    timings = read_timings(directory)
    head = next((event for event in timings if isinstance(event, events.Run)), events.Run(title, "", 0))
    summary = read_json(directory / rundir.SUMMARY, ("per_stage", "parameters_sha256", "checkpoint_failures", "wall_seconds"))
    checkpoints = [
        Checkpoint(step, sum(file.stat().st_size for file in each.iterdir()))
        for step, each in complete_checkpoints(directory).items()
    ]
    return Run(
        directory=directory,
        title=head.title,
        engine=summary["engine"] if summary else head.engine,
        config=config,
        config_text=text,
        summary=summary,
        under_way=summary is None and rundir.is_locked(directory),
        metrics=metrics,
        stages=_stages_of_summary(summary) if summary else _stages_so_far(metrics, timings),
        checkpoints=checkpoints,
        restarts=rundir.read_restarts(directory),
        quality=read_json(directory / rundir.QUALITY, ("components", "metric", "step")),
    )


def _stages_of_summary(summary: dict) -> list[Stage]:
    return [
        Stage(
            each["stage"],
            each["components"],
            each["device"],
            each["host"],
            {state: each[f"seconds_{state}"] for state in STATES},
            each["peak_memory_bytes"],
        )
        for each in summary["per_stage"]
    ]


def _stages_so_far(metrics: list[Timed], timings: list[Event]) -> list[Stage]:
    """The stages after the last epoch that all of them have ended, since the run was last resumed."""
    starts = [index for index, (_, event) in enumerate(metrics) if isinstance(event, events.Start)]
    since = [event for _, event in metrics[starts[-1] if starts else 0 :]]
    of_epoch = {(event.stage, event.epoch): event for event in since if isinstance(event, events.StageTimes)}
    ready = {event.stage: event for event in timings if isinstance(event, events.Ready)}
    numbers = sorted({*ready, *(stage for stage, _ in of_epoch)})
    common = set.intersection(*({epoch for stage, epoch in of_epoch if stage == number} for number in numbers or [0]))
    stages = []
    for number in numbers:
        times, known = of_epoch[number, max(common)] if common else None, ready.get(number)
        named = (known.components, known.device, known.host) if known else ([], "", "")
        stages.append(Stage(number, *named, times.seconds if times else {}, times.peak_memory if times else 0))
    return stages


def _read_comparison(directory: Path) -> Comparison:
    result = read_json(directory / rundir.COMPARISON, ("table", "runs", "metric", "goal", "machine"))
    runs: dict[str, Run] = {}
    for run in result["runs"]:
        folder = directory / run["directory"]
        if run["method"] not in runs and (folder / rundir.CONFIG).is_file():
            runs[run["method"]] = read_run(folder)
    return Comparison(directory, result, list(runs.values()))


def read_json(path: Path, fields: tuple[str, ...]) -> dict | None:
    """The contents of a JSON file; None when there is no such file.

    Raises:
        UserError: when it is no JSON, or lacks one of `fields`.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {error}") from error
    missing = [field for field in fields if field not in found]
    if missing:
        raise UserError(f"{path}: has no {missing[0]}; it is damaged, or from another alrpc")
    return found
