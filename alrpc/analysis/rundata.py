"""The only reader of the files that runs and comparisons leave in their directories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from alrpc import events, rundir
from alrpc.analysis.contents import (
    CALIBRATION,
    COMPARISON,
    QUALITY,
    RUN_CONFIG,
    SUMMARY,
    Calibration,
    ComparisonFile,
    Quality,
    RunConfig,
    Summary,
)
from alrpc.analysis.metrics import LossCurves, Timed, read_metrics, read_timings
from alrpc.checkpoint.commit import complete_checkpoints
from alrpc.config import NAMES
from alrpc.errors import UsageError, UserError
from alrpc.events import Event
from alrpc.reading.documents import describe, parse_yaml, read_json
from alrpc.reading.regular import MIB, Absent, read_text
from alrpc.telemetry.bottleneck import find_bottleneck
from alrpc.timing import STATES, idle_share

E, T = TypeVar("E", bound=Event), TypeVar("T")


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
    config: RunConfig
    config_text: str
    summary: Summary | None
    """Contents of summary.json; None unless the run has finished."""
    under_way: bool
    metrics: list[Timed]
    """The events of metrics.jsonl; of losses in a row only the last."""
    losses: dict[int, list[tuple[int, dict[str, float | None]]]]
    """For each component, its steps and their losses by name, thinned in a long run."""
    loss_names: list[str]
    """The names of the losses, in the objective's order."""
    losses_every: int
    """Of how many steps with losses one is kept."""
    skipped: dict[int, int]
    """For each component, the number of updates skipped because a loss or gradient was not finite."""
    stages: list[Stage]
    checkpoints: list[Checkpoint]
    """The checkpoints that were kept."""
    restarts: list[dict]
    quality: Quality | None
    calibration: Calibration | None

    @property
    def name(self) -> str:
        return rundir.run_name(self.directory)

    @cached_property
    def curve(self) -> list[tuple[float, int, list[float]]]:
        """For each epoch: seconds since the first micro-batch (evaluation included), epoch, score of every exit on `split`.

        The seconds of a resumed run add up over its parts, without the time between them.
        """
        found: dict[int, tuple] = {}
        before, began, last = 0.0, 0.0, 0.0
        for time, event in self.metrics:
            if isinstance(event, events.Start):
                before, began = before + last - began, time
            last = time
            if isinstance(event, events.Evaluation) and event.split == self.split:
                found[event.epoch] = (before + last - began, event.epoch, event.exits)
        return [found[epoch] for epoch in sorted(found)]

    @property
    def measured(self) -> dict[str, dict[int, list[float]]]:
        """For each further metric, its value at every exit by epoch, on `split`."""
        found: dict[str, dict[int, list[float]]] = {}
        for event in self._events(events.Evaluation):
            for name, exits in (event.metrics or {}).items() if event.split == self.split else ():
                found.setdefault(name, {})[event.epoch] = exits
        return found

    @property
    def metric(self) -> str:
        return next((event.metric for event in self._events(events.Evaluation)), "accuracy")

    @property
    def split(self) -> str:
        """The split that is evaluated after every epoch: validation if there is one, which leaves test to the end of the run."""
        return next((event.split for event in self._events(events.Evaluation)), "test")

    @property
    def evaluated_samples(self) -> int | None:
        """Number of samples of that split; None where the run has not told it."""
        return next((event.samples for event in self._events(events.Evaluation) if event.split == self.split), None)

    @property
    def tested(self) -> events.Evaluation | None:
        """The last evaluation of the test split; None if there is none yet."""
        return next((event for event in reversed(self._events(events.Evaluation)) if event.split == "test"), None)

    @property
    def chance(self) -> float | None:
        """The score that guessing has; None where the metric has none, or where the run has not told it."""
        return next((event.chance for event in reversed(self._events(events.Evaluation))), None)

    @property
    def scores(self) -> list[float]:
        """The last exit's score in each epoch, on `split`."""
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

    @property
    def learner(self) -> str:
        """How the run learned: its objective, or the baseline's name; "" when it is not known."""
        if self.engine not in events.ENGINES:
            return self.engine
        objective = self.config.get("objective", {}).get("name", NAMES["objective.name"])  # a run of 0.1 does not say
        return objective if self.engine == "pipeline" else f"{objective}, sequential"

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
    result: ComparisonFile
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
    metrics, losses = _collect(read_metrics(directory))
    if not any(isinstance(event, (events.Losses, events.Evaluation, events.StageTimes)) for _, event in metrics):
        raise UserError(f"{directory}: nothing to report: no losses and no scores in {rundir.METRICS} yet")
    config, text = _read_config(directory / rundir.CONFIG)
    timings = read_timings(directory)
    title = f"{config['model']['name']} on {config['data']['name']}"
    head = next((event for event in timings if isinstance(event, events.Run)), events.Run(title, "", 0))
    summary = read_contents(directory / rundir.SUMMARY, SUMMARY)
    checkpoints = [
        Checkpoint(step, sum(file.lstat().st_size for file in each.iterdir()))
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
        losses=losses.by_component(),
        loss_names=losses.names,
        losses_every=losses.every,
        skipped={component: count for component, count in sorted(losses.skipped.items()) if count},
        stages=_stages_of_summary(summary) if summary else _stages_so_far(metrics, timings),
        checkpoints=checkpoints,
        restarts=rundir.read_restarts(directory),
        quality=read_contents(directory / rundir.QUALITY, QUALITY),
        calibration=read_contents(directory / rundir.CALIBRATION, CALIBRATION),
    )


def _collect(metrics: Iterator[Timed]) -> tuple[list[Timed], LossCurves]:
    """The events, of losses in a row only the last; and the losses."""
    kept: list[Timed] = []
    losses = LossCurves()
    for timed in metrics:
        if isinstance(timed[1], events.Losses):
            losses.add(timed[1])
            if kept and isinstance(kept[-1][1], events.Losses):
                kept.pop()
        kept.append(timed)
    return kept, losses


def _read_config(path: Path) -> tuple[RunConfig, str]:
    """A run's configuration, of which no more is checked than a report needs; and its text."""
    text = read_text(path, MIB)
    try:
        return RUN_CONFIG.validate_python(parse_yaml(text)), text
    except ValidationError as error:
        raise UserError(f"{path}: is not the configuration of a run: {describe(error)}") from error
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error


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
    result = read_json(directory / rundir.COMPARISON, COMPARISON)
    runs: dict[str, Run] = {}
    for run in result["runs"]:
        folder = directory / run["directory"]
        if run["method"] not in runs and (folder / rundir.CONFIG).is_file():
            runs[run["method"]] = read_run(folder)
    return Comparison(directory, result, list(runs.values()))


def read_contents(path: Path, shape: TypeAdapter[T]) -> T | None:
    """The contents of a JSON file, checked; None when there is no such file. Raises like `alrpc.reading.documents.read_json`."""
    try:
        return read_json(path, shape)
    except Absent:
        return None
