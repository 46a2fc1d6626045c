"""What a page shows, read from the directories of runs and comparisons."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from alrpc.checkpoint import complete_checkpoints, step_of
from alrpc.errors import UserError
from alrpc.observe.bottleneck import find_bottleneck
from alrpc.observe.record import TIMINGS, restarts_of
from alrpc.observe.spans import whole_lines
from alrpc.resume import claimed
from alrpc.timing import STATES, WAITING, WORKING

CONFIG, COMPARISON = "config.yaml", "comparison.json"


@dataclass(frozen=True)
class Stage:
    """A process that trains."""

    number: int
    components: list[int]
    device: str
    host: str
    seconds: dict[str, float]
    """In each of STATES; empty before its first epoch has ended."""
    peak_memory: int
    """Bytes; 0 before its first epoch has ended."""

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Checkpoint:
    step: int
    size: int
    """Bytes on the disk."""


@dataclass(frozen=True)
class Run:
    """A run that has ended well, or died, or is under way."""

    directory: Path
    title: str
    engine: str
    """pipeline, sequential, or a baseline's name; "" when it is not known."""
    config: dict[str, Any]
    config_text: str
    summary: dict | None
    """None unless it has ended well."""
    under_way: bool
    events: list[dict]
    """Of metrics.jsonl."""
    stages: list[Stage]
    checkpoints: list[Checkpoint]
    """Those that are kept."""
    restarts: list[dict]
    quality: dict | None

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @cached_property
    def losses(self) -> dict[int, list[tuple[int, float | None, float | None]]]:
        """By component: step, associated and autoencoder loss; of a step that was repeated, the last."""
        found: dict[int, dict[int, tuple]] = {}
        for event in self._events("losses"):
            both = (event["associated_loss"], event["autoencoder_loss"])
            found.setdefault(event["component"], {})[event["step"]] = both
        return {
            component: [(step, *both) for step, both in sorted(steps.items())] for component, steps in sorted(found.items())
        }

    @cached_property
    def curve(self) -> list[tuple[float, int, list[float]]]:
        """Of each epoch: seconds since the first micro-batch, tests included, epoch, score of every exit.

        The seconds of a run that went on are those of all its parts, without the time between them.
        """
        found: dict[int, tuple] = {}
        before, began, last = 0.0, 0.0, 0.0
        for event in self.events:
            if event["event"] == "start":
                before, began = before + last - began, event["time"]
            last = event["time"]
            if event["event"] == "evaluation":
                found[event["epoch"]] = (before + last - began, event["epoch"], event["exits"])
        return [found[epoch] for epoch in sorted(found)]

    @property
    def metric(self) -> str:
        return next((event["metric"] for event in self._events("evaluation")), "accuracy")

    @property
    def scores(self) -> list[float]:
        """Of the last exit, by epoch."""
        return [exits[-1] for _, _, exits in self.curve]

    @property
    def wall_seconds(self) -> float:
        """From its begin to its end, or to the last line that it has written so far."""
        return self.summary["wall_seconds"] if self.summary else self.events[-1]["time"]

    @property
    def samples_per_second(self) -> float | None:
        """Known when it has ended well: tests included."""
        return self.summary["samples_per_second"] if self.summary else None

    @property
    def coordinator_memory(self) -> int:
        """Bytes; 0 where it trains too, or before the end."""
        return max((event["peak_memory"] for event in self._events("coordinator")), default=0)

    @property
    def memory(self) -> dict[str, int]:
        """Peak of each process, bytes; a GPU's where a stage has one."""
        of_stages = {self.name_of(stage): stage.peak_memory for stage in self.stages if stage.peak_memory}
        return {**({"coordinator": self.coordinator_memory} if self.coordinator_memory else {}), **of_stages}

    @property
    def idle(self) -> float | None:
        """The share of their training time in which the processes that train wait."""
        waits = sum(stage.seconds[state] for stage in self.stages if stage.seconds for state in WAITING)
        works = sum(stage.seconds[state] for stage in self.stages if stage.seconds for state in WORKING)
        return waits / (waits + works) if waits + works else None

    @property
    def skipped(self) -> dict[int, int]:
        """By component, the updates that were left out because a loss or gradient was not finite."""
        counts: Counter[int] = Counter()
        for event in self._events("losses"):
            counts[event["component"]] += event.get("skipped_updates", 0)
        return {component: count for component, count in sorted(counts.items()) if count}

    @property
    def slow(self) -> list[dict]:
        return self._events("slow")

    @property
    def failures(self) -> list[str]:
        """Why checkpoints, or lines of metrics, could not be written."""
        if self.summary:
            return self.summary["checkpoint_failures"]
        return [f"no checkpoint of step {event['step']}: {event['cause']}" for event in self._events("unwritten")]

    @property
    def checkpoints_taken(self) -> int:
        return len({event["step"] for event in self._events("checkpoint")})

    def name_of(self, stage: Stage) -> str:
        return f"{'stage' if self.engine == 'pipeline' else 'process'} {stage.number}"

    def bottleneck(self) -> tuple[int | None, str]:
        """The stage that holds the others up, and a sentence on it. A baseline's processes wait by schedule."""
        if self.engine != "pipeline" or not all(stage.seconds for stage in self.stages):
            return None, ""
        components = {stage.number: stage.components for stage in self.stages}
        return find_bottleneck({stage.number: stage.seconds for stage in self.stages}, components)

    def _events(self, kind: str) -> list[dict]:
        return [event for event in self.events if event["event"] == kind]


@dataclass(frozen=True)
class Comparison:
    """What `alrpc compare` has left."""

    directory: Path
    result: dict
    """comparison.json."""
    runs: list[Run]
    """Of each method the first that is there."""


def read(directories: list[Path]) -> tuple[list[Run], list[Comparison]]:
    """The runs and the comparisons of which these are the directories, each once.

    Raises:
        UserError: naming the directory, or the file, that is not what it should be.
    """
    runs, comparisons, seen = [], [], set()
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory}: is not a directory; give that of a run or of a comparison")
        if directory.resolve() in seen:
            continue
        seen.add(directory.resolve())
        if (directory / COMPARISON).is_file():
            comparisons.append(_read_comparison(directory))
        elif (directory / CONFIG).is_file():
            runs.append(read_run(directory))
        else:
            raise UserError(f"{directory}: is neither a run nor a comparison: it has no {CONFIG} and no {COMPARISON}")
    return runs, comparisons


def labels(runs: list[Run]) -> list[str]:
    """What to call them: their directories' names, or paths if two have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def read_run(directory: Path) -> Run:
    """What a run's directory tells; raises UserError when that is nothing yet, or a file is damaged."""
    path = directory / "metrics.jsonl"
    events = whole_lines(path) if path.is_file() else []
    if not any(event["event"] in ("losses", "evaluation", "stage") for event in events):
        raise UserError(f"{directory}: nothing to report: no losses and no scores in {path.name} yet")
    text = (directory / CONFIG).read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
        title = f"{config['model']['name']} on {config['data']['name']}"
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{directory / CONFIG}: is not the configuration of a run: {' '.join(str(error).split())}") from error
    timings = whole_lines(directory / TIMINGS) if (directory / TIMINGS).is_file() else []
    head = next((event for event in timings if event["event"] == "run"), {})
    summary = _read_json(directory / "summary.json", ("per_stage", "parameters_sha256", "checkpoint_failures", "wall_seconds"))
    checkpoints = [
        Checkpoint(step_of(each), sum(file.stat().st_size for file in each.iterdir()))
        for each in complete_checkpoints(directory)
    ]
    return Run(
        directory,
        head.get("title", title),
        (summary or head).get("engine", ""),
        config,
        text,
        summary,
        summary is None and _is_under_way(directory),
        events,
        _stages_from(summary, events, timings),
        checkpoints,
        restarts_of(directory),
        _read_json(directory / "quality.json", ("components", "metric", "step")),
    )


def _stages_from(summary: dict | None, events: list[dict], timings: list[dict]) -> list[Stage]:
    """From the summary; before there is one, as of the last epoch that all stages have ended, since the run last went on."""
    if summary is not None:
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
    starts = [index for index, event in enumerate(events) if event["event"] == "start"]
    told = [event for event in events[starts[-1] if starts else 0 :] if event["event"] == "stage"]
    ready = {event["stage"]: event for event in timings if event["event"] == "ready"}
    numbers = sorted({*ready, *(event["stage"] for event in told)})
    of_epoch = {(event["stage"], event["epoch"]): event for event in told}
    common = set.intersection(*({epoch for stage, epoch in of_epoch if stage == number} for number in numbers or [0]))
    stages = []
    for number in numbers:
        event, known = of_epoch[number, max(common)] if common else {}, ready.get(number, {})
        named = (known.get("components", []), known.get("device", ""), known.get("host", ""))
        stages.append(Stage(number, *named, event.get("seconds", {}), event.get("peak_memory", 0)))
    return stages


def _read_comparison(directory: Path) -> Comparison:
    result = _read_json(directory / COMPARISON, ("table", "runs", "metric", "goal", "machine"))
    runs: dict[str, Run] = {}
    for run in result["runs"]:
        folder = directory / run["directory"]
        if run["method"] not in runs and (folder / CONFIG).is_file():
            runs[run["method"]] = read_run(folder)
    return Comparison(directory, result, list(runs.values()))


def _read_json(path: Path, fields: tuple[str, ...]) -> dict | None:
    """What a file holds, these fields among it; None when there is no such file."""
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


def _is_under_way(directory: Path) -> bool:
    try:
        with claimed(directory):
            return False
    except UserError:
        return True
