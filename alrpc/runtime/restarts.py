"""`alrpc launch`: a pipeline's run on this machine, begun or gone on with, and again after a failure."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from alrpc import rundir
from alrpc.checkpoint.resume import last_whole_step, load_resume_point, note_restart, resume_hint
from alrpc.config import Config, parse_config, user_code_fields
from alrpc.errors import Interrupted, PermanentFailure, RunFailed, StartupError
from alrpc.network import resolve
from alrpc.pipeline.placement import check_pipeline
from alrpc.runtime.local import Launch, listening_socket, run_processes
from alrpc.runtime.run import prepare_directory
from alrpc.runtime.worker import Options, run_rank
from alrpc.system import local_device


def launch_pipeline(
    config: Config,
    stages: int | None = None,
    *,
    name: str = "run",
    out: Path | str | None = None,
    quiet: bool = True,
    max_restarts: int = 0,
) -> tuple[dict, Path]:
    """Run a pipeline on this machine, a process a stage, and wait for its end.

    Args:
        config: what `alrpc.load_config` gives.
        stages: number of stages; None for `config.pipeline.stages`.
        name: what the run's directory is named after when `out` is None.
        out: the run's directory; it must not exist, or be empty.
        quiet: show nothing but the last line.
        max_restarts: how often a run whose process died goes on from its last checkpoint, before the failure is raised.

    Returns:
        The summary (the contents of summary.json) and the run's directory.

    Raises:
        UserError: for a configuration that cannot work; nothing has been written then.
        RunFailed: when a process failed; names the process, its host, the cause and its log.
        Stopped: when this process was told to end by SIGTERM, and the run has taken a checkpoint first.
        Interrupted: when this process was told to end otherwise, or no checkpoint could be taken in time.
    """
    config, components = resolve(with_stages(config, stages))
    check_pipeline(config, components)
    local_device(config.device)
    with listening_socket(config.pipeline.port) as listener:
        directory = prepare_directory(Path(out) if out is not None else None, name, config)
        again = [f"{field}={value}" for field, value in user_code_fields(config).items()]
        run_with_restarts(Options(prepared=directory, quiet=quiet), again, config, directory, listener, max_restarts)
    return read_summary(directory), directory


def resume_pipeline(
    directory: Path | str, overrides: Sequence[str] = (), step: int | None = None, *, quiet: bool = True, max_restarts: int = 0
) -> tuple[dict, Path]:
    """Go on with a run of either engine from its last checkpoint, on as many stages as wanted.

    Args:
        directory: the run's, which goes on being it.
        overrides: `section.field=value`, of what may change: see `alrpc.checkpoint.resume.MAY_CHANGE`.
        step: of the checkpoint to go on from; None for the last one.

    Returns, raises:
        As `launch_pipeline`.
    """
    directory = Path(directory)
    config, components, point = load_resume_point(directory, overrides, step)
    check_pipeline(config, components)
    local_device(config.device)
    with listening_socket(config.pipeline.port) as listener:
        options = Options(resume=directory, step=point.step, overrides=tuple(overrides), quiet=quiet)
        run_with_restarts(options, overrides, config, directory, listener, max_restarts, keep=True)
    return read_summary(directory), directory


def with_stages(config: Config, stages: int | None) -> Config:
    """The configuration with another number of stages; None for its own."""
    if stages is None:
        return config
    tree = config.model_dump(exclude_unset=True)  # a model may have other defaults
    return parse_config({**tree, "pipeline": {**tree.get("pipeline", {}), "stages": stages}})


def read_summary(directory: Path) -> dict:
    return json.loads((directory / rundir.SUMMARY).read_text(encoding="utf-8"))


def run_with_restarts(
    options: Options,
    overrides: Sequence[str],
    config: Config,
    directory: Path,
    listener: socket.socket,
    max_restarts: int,
    keep: bool = False,
) -> None:
    """Run the pipeline's processes; when one fails, again from the last whole checkpoint, or from the beginning if there is none.

    Each attempt has an agent of its own. torchelastic's own restarts would tell neither the cause nor what is no use repeating.

    Args:
        options: of the first attempt.
        overrides: of the configuration, for an attempt that goes on from a checkpoint.
        keep: whether the directory stays when the first attempt is refused.
    """
    processes, grace = config.pipeline.stages + 1, config.checkpoint.grace
    for left_by_another in (rundir.RESTARTS, rundir.STOP):
        (directory / left_by_another).unlink(missing_ok=True)
    for attempt in range(1, max_restarts + 2):
        try:
            run_processes(Launch(run_rank, (options,), processes, grace=grace), directory, listener, keep or attempt > 1)
            return
        except StartupError:
            raise
        except Interrupted as error:
            raise Interrupted(error.number, f"; {resume_hint(directory)}") from error
        except RunFailed as error:
            if attempt > max_restarts or isinstance(error, PermanentFailure):
                raise type(error)(f"{error}; {resume_hint(directory)}") from error
            step = last_whole_step(directory, config.train.epochs)
            note_restart(directory, str(error), step)
            place = f"step {step}" if step else "the beginning"
            print(f"alrpc: {error}; restart {attempt} of {max_restarts}, from {place}", file=sys.stderr, flush=True)
            if step:
                options = Options(resume=directory, step=step, overrides=tuple(overrides), quiet=options.quiet)
            listener.close()
            listener = listening_socket(config.pipeline.port)
