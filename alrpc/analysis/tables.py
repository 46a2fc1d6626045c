"""Tables of a timeline's window, for a terminal."""

from __future__ import annotations

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
