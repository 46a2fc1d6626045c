"""`alrpc launch`: start or resume a pipeline run on this machine, and restart it after a failure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from alrpc import rundir
from alrpc.analysis.contents import SUMMARY
from alrpc.checkpoint.changes import resuming
from alrpc.checkpoint.resume import last_whole_step, load_resume_point, note_restart, resume_hint
from alrpc.config import Config, parse_config, run_name, user_code_fields
from alrpc.errors import Interrupted, PermanentFailure, RunFailed, StartupError, UsageError
from alrpc.network import resolve
from alrpc.pipeline.failures import log_line
from alrpc.pipeline.placement import check_pipeline
from alrpc.reading.documents import read_json
from alrpc.runtime.follow import followed
from alrpc.runtime.local import Launch, run_processes
from alrpc.runtime.run import new_run_directory
from alrpc.runtime.worker import Options, run_rank
from alrpc.system import local_device


def launch_pipeline(
    config: Config,
    stages: int | None = None,
    *,
    name: str | None = None,
    out: Path | str | None = None,
    quiet: bool = True,
    verbose: bool = False,
    max_restarts: int = 0,
) -> tuple[dict, Path]:
    """Run a pipeline on this machine, with one process for each stage, and wait for its end.

    Args:
        config: a configuration, such as `alrpc.load_config` returns.
        stages: number of stages; None for `config.pipeline.stages`.
        name: name for the run's directory if `out` is None; None for that of the model and the data.
        out: the run's directory; it must not exist, or be empty.
        quiet: show nothing but the last line.
        verbose: print a line for all losses and checkpoints, and the lines of the processes' logs.
        max_restarts: how often a failed run is resumed from its last checkpoint, before the failure is raised.

    Returns:
        The summary (the contents of summary.json) and the run's directory.

    Raises:
        UserError: for a configuration that cannot work; nothing has been written then.
        RunFailed: when a process failed; names the process, its host, the cause and its log.
        Stopped: when this process received SIGTERM and the run has taken a checkpoint.
        Interrupted: when this process received another signal, or no checkpoint could be taken in time.
    """
    if not isinstance(config, Config):
        raise UsageError(f"config: got {type(config).__name__}; give a configuration, such as alrpc.load_config returns")
    if max_restarts < 0:
        raise UsageError(f"max_restarts: got {max_restarts}; give 0 or more")
    config, components = resolve(with_stages(config, stages))
    check_pipeline(config, components)
    local_device(config.device)
    with new_run_directory(Path(out) if out is not None else None, name or run_name(config), config) as directory:
        overrides = [f"{field}={value}" for field, value in user_code_fields(config).items()]
        run_with_restarts(Options(prepared=directory, quiet=quiet, verbose=verbose), overrides, config, directory, max_restarts)
        return read_summary(directory), directory


def resume_pipeline(
    directory: Path | str,
    overrides: Sequence[str] = (),
    step: int | None = None,
    *,
    quiet: bool = True,
    verbose: bool = False,
    max_restarts: int = 0,
) -> tuple[dict, Path]:
    """Resume a run of either engine from its last checkpoint, on any number of stages.

    Args:
        directory: the run's directory, in which the resumed run continues.
        overrides: `section.field=value`, for fields that may change; see `alrpc.checkpoint.changes.MAY_CHANGE`.
        step: the step of the checkpoint to resume from; None for the last one.

    Returns, raises:
        See `launch_pipeline`.
    """
    directory = Path(directory)
    with resuming(directory):
        config, components, point = load_resume_point(directory, overrides, step)
        check_pipeline(config, components)
        local_device(config.device)
        options = Options(resume=directory, step=point.step, overrides=tuple(overrides), quiet=quiet, verbose=verbose)
        run_with_restarts(options, overrides, config, directory, max_restarts, keep=True)
        return read_summary(directory), directory


def with_stages(config: Config, stages: int | None) -> Config:
    """The configuration with another number of stages; unchanged for None."""
    if stages is None:
        return config
    tree = config.model_dump(exclude_unset=True)  # only the set fields, since a model may have other defaults
    return parse_config({**tree, "pipeline": {**tree.get("pipeline", {}), "stages": stages}})


def read_summary(directory: Path) -> dict:
    return dict(read_json(directory / rundir.SUMMARY, SUMMARY))


def run_with_restarts(
    options: Options,
    overrides: Sequence[str],
    config: Config,
    directory: Path,
    max_restarts: int,
    keep: bool = False,
) -> None:
    """Run the pipeline's processes; after a failure restart them from the last valid checkpoint, or from the beginning.

    Each attempt has its own agent, since torchelastic's own restarts would neither report the cause nor detect a permanent failure.

    Args:
        options: options of the first attempt.
        overrides: overrides of the configuration for attempts that resume from a checkpoint.
        keep: whether to keep what is in the directory when the first attempt is refused.
    """
    processes, grace = config.pipeline.stages + 1, config.checkpoint.grace
    for leftover in (rundir.RESTARTS, rundir.STOP):
        (directory / leftover).unlink(missing_ok=True)
    for attempt in range(1, max_restarts + 2):
        try:
            with followed(directory / "logs") if options.verbose else nullcontext():
                run_processes(Launch(run_rank, (options,), processes, grace=grace), directory, keep or attempt > 1)
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
            origin = f"step {step}" if step else "the beginning"
            log_line(f"alrpc: {error}; restart {attempt} of {max_restarts}, from {origin}")
            if step:
                options = replace(options, prepared=None, resume=directory, step=step, overrides=tuple(overrides))
