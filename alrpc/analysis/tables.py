"""A timeline's window in figures: a table for a terminal, and the same for JSON."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from alrpc.analysis.timeline import Window
from alrpc.timing import STATES

SHORT = {"waiting_to_receive": "wait: input", "waiting_to_send": "wait: send"}


def share_table(title: str, window: Window) -> Table:
    """The share of the window that each stage spent in each state."""
    stages = [stage for stage in sorted(window.lanes) if stage]
    seconds = {stage: window.seconds_of(stage) for stage in stages}
    states = [state for state in STATES if any(seconds[stage][state] for stage in stages)]
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
        title=f"{title}, {window.seconds * 1000:,.0f} ms",
        title_justify="left",
    )
    table.add_column("stage", justify="right", no_wrap=True)
    for state in states:
        table.add_column(SHORT.get(state, state), justify="right", no_wrap=True)
    for stage in stages:
        table.add_row(str(stage), *(f"{seconds[stage][state] / window.seconds:.1%}" for state in states))
    return table


def figures(window: Window) -> dict[str, Any]:
    """The window for JSON: its `seconds`, its `bubble` (the share of all stages' time in which they do not work), the number of the
    stage that is the `bottleneck` (null for none), and for each stage its share of `work` and its seconds in each state."""
    return {
        "engine": window.timings.engine,
        "seconds": window.seconds,
        "bubble": window.bubble(),
        "bottleneck": window.bottleneck()[0],
        "per_stage": [
            {
                "stage": stage,
                "components": window.timings.components_of(stage),
                "work": window.work(stage),
                **{f"seconds_{state}": seconds for state, seconds in window.seconds_of(stage).items()},
            }
            for stage in sorted(window.lanes)
            if stage
        ],
    }
