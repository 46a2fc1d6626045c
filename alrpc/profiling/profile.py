"""Profiles of one or several methods, each in processes of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from alrpc.agent import Refused, listening_socket, pipeline_role, process_role, run_processes
from alrpc.assembly import check_pipeline, local_device, resolve
from alrpc.comparison.compare import ALONE, make_directory
from alrpc.config import Config
from alrpc.observe.spans import read_record
from alrpc.observe.timeline import Window, choose_window, draw
from alrpc.profiling.trace import merge
from alrpc.run import create_run_directory

WARM_UP = 20  # steps that are not recorded
Watch = Callable[[str], AbstractContextManager]


def profile(
    config: Config, methods: list[str], steps: int, out: Path | None, name: str, watch: Watch
) -> tuple[dict[str, Window], Path]:
    """Record some steady-state steps of each method: a trace each, and a timeline of all of them on one time axis.

    Args:
        methods: al, or a baseline.
        steps: training micro-batches to record.
        out: directory to make; None for runs/profile-<name>-<time>. It then holds a directory for each method, with trace.json.gz
            and timings.jsonl, and timeline.png and timeline.svg.
        watch: a method -> a context that shows that it is under way.

    Returns:
        What each method's processes did over those steps, by method; and the directory.

    Raises:
        UserError: for what the user can put right; nothing is left then.
        RunFailed, Interrupted: as `alrpc.agent.run_processes`.
    """
    config, components = resolve(config)
    if not set(methods) <= {*ALONE, "ddp"}:
        check_pipeline(config, components)
    local_device(config.device)
    directory = make_directory(out, f"profile-{name}")
    windows: dict[str, Window] = {}
    for method in methods:
        folder = directory / method
        try:
            with watch(method):
                _record(method, config, steps, folder)
                merge(folder)
        except Refused:
            if not windows:
                directory.rmdir()
            raise
        windows[method] = choose_window(read_record(folder), steps=steps)
    draw(list(windows.values()), [directory / "timeline.png", directory / "timeline.svg"])
    return windows, directory


def _record(method: str, config: Config, steps: int, directory: Path) -> None:
    count = config.pipeline.stages
    create_run_directory(directory, method, config)
    numbers = [str(WARM_UP), str(steps)]
    if method == "al":
        arguments, processes, role = ["alrpc.profiling.worker", str(directory), *numbers], count + 1, pipeline_role
    else:
        arguments = ["alrpc.baselines.worker", method, str(directory), *numbers]
        processes, role = 1 if method in ALONE else count, process_role
    with listening_socket(0) as listener:
        run_processes(arguments, processes, directory, listener, role, silent=True)
