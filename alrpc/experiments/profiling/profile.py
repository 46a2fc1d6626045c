"""Profiles one or several methods, each in processes of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from alrpc import rundir
from alrpc.analysis.aligned import align_timings
from alrpc.analysis.timeline import Window, choose_window, draw
from alrpc.analysis.trace import merge
from alrpc.config import Config
from alrpc.experiments import check_methods
from alrpc.experiments.baselines.worker import run_method
from alrpc.experiments.comparison import ALONE
from alrpc.experiments.profiling.worker import profile_rank
from alrpc.network import resolve
from alrpc.pipeline.placement import check_pipeline
from alrpc.runtime.local import Launch, process_role, run_processes
from alrpc.runtime.run import new_run_directory
from alrpc.system import local_device

WARM_UP = 20  # steps that are not recorded
Watch = Callable[[str], AbstractContextManager]


def profile(
    config: Config, methods: list[str], steps: int, out: Path | None, name: str, watch: Watch
) -> tuple[dict[str, Window], Path]:
    """Record some steady-state steps of each method: a trace for each, and a timeline of all on one time axis.

    Args:
        methods: al, or a baseline.
        steps: training micro-batches to record.
        out: directory to make; None for runs/profile-<name>-<time>. It then holds timeline.png, timeline.svg and a directory
            for each method, with trace.json.gz and timings.jsonl.
        watch: method -> a context that shows that it is under way.

    Returns:
        The timeline's window of each method, and the directory.

    Raises:
        UserError: for what the user can put right; nothing is left then.
        RunFailed, Interrupted: as `alrpc.runtime.local.run_processes`.
    """
    config, components = resolve(config)
    check_methods(config, methods)
    if not set(methods) <= {*ALONE, "ddp"}:
        check_pipeline(config, components)
    local_device(config.device)
    with rundir.new_directory(out, f"profile-{name}") as directory:
        windows: dict[str, Window] = {}
        for method in methods:
            folder = directory / method
            with watch(method):
                _record(method, config, steps, folder)
                merge(folder)
            windows[method] = choose_window(align_timings(folder), steps=steps)
        draw(list(windows.values()), [directory / "timeline.png", directory / "timeline.svg"])
        return windows, directory


def _record(method: str, config: Config, steps: int, directory: Path) -> None:
    stages = config.pipeline.stages
    if method == "al":
        launch = Launch(profile_rank, (directory, WARM_UP, steps), stages + 1, silent=True)
    else:
        processes = 1 if method in ALONE else stages
        launch = Launch(run_method, (method, directory, (WARM_UP, steps)), processes, process_role, silent=True)
    with new_run_directory(directory, method, config):
        run_processes(launch, directory)
