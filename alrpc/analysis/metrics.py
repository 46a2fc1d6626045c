"""The events that a run has left in metrics.jsonl and timings.jsonl, read line by line; and its losses, thinned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from alrpc import events, rundir
from alrpc.errors import UserError
from alrpc.events import Event
from alrpc.reading.documents import LARGE, describe, read_json_lines, shown
from alrpc.reading.regular import Absent

Timed = tuple[float, Event]
"""An event of metrics.jsonl and its time: seconds since the run began or was last resumed."""
POINTS = 2000  # most steps of a component whose losses are kept; a chart shows a quarter of them


def read_metrics(run: Path) -> Iterator[Timed]:
    """Read the events that a run's metrics.jsonl holds so far, one after the other; none when there is no such file.

    Raises:
        UserError: naming file and line, when a line lacks what it must have.
    """
    path = run / rundir.METRICS
    for number, tree, event in _read_events(path):
        time = tree.get("time", 0.0)
        if not isinstance(time, int | float) or not 0 <= time < 1e12:
            raise UserError(f"{path}:{number}: time: got {shown(time)}; it must be seconds since the run began")
        yield time, event


def read_timings(run: Path) -> list[Event]:
    """Read the events that a run's timings.jsonl holds so far; none when there is no such file. Raises like `read_metrics`."""
    return [event for _, _, event in _read_events(run / rundir.TIMINGS, LARGE)]


def _read_events(path: Path, most: int | None = None) -> Iterator[tuple[int, dict, Event]]:
    try:
        for number, tree in read_json_lines(path, most):
            try:
                event = events.from_json(tree)
            except ValidationError as error:
                raise UserError(f"{path}:{number}: {describe(error)}") from error
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}") from error
            if event is not None:
                yield number, tree, event
    except Absent:
        return


class LossCurves:
    """The losses of a run's components by step, at most POINTS steps of each, however long the run is."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """The names of the losses, in the objective's order."""
        self.skipped: Counter[int] = Counter()
        """For each component, the number of updates skipped because a loss or gradient was not finite."""
        self.every = 1
        """Of how many steps in a row at least one is kept."""
        self._of_component: dict[int, dict[int, dict[str, float | None]]] = {}
        self._seen: Counter[int] = Counter()

    def add(self, event: events.Losses) -> None:
        """Add the next event; the last values win where a step was repeated."""
        self.names = self.names or list(event.losses)
        self.skipped[event.component] += event.skipped_updates
        steps = self._of_component.setdefault(event.component, {})
        if self._seen[event.component] % self.every == 0 or event.step in steps:
            steps[event.step] = event.losses
        self._seen[event.component] += 1
        if len(steps) > POINTS:
            self.every *= 2
            for number, known in self._of_component.items():
                self._of_component[number] = dict(list(known.items())[::2])

    def by_component(self) -> dict[int, list[tuple[int, dict[str, float | None]]]]:
        """For each component, its steps and their losses by name."""
        return {component: sorted(steps.items()) for component, steps in sorted(self._of_component.items())}
