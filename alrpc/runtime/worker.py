"""A process of a pipeline, started by torchrun or `alrpc launch`: rank 0 is the coordinator, rank n is stage n."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from alrpc import rundir
from alrpc.checkpoint.changes import check_resume_options, resuming
from alrpc.checkpoint.resume import last_whole_step, load_resume_point, note_restart, resume_hint
from alrpc.config import load_config, run_name
from alrpc.errors import FAILED, FAILED_FOR_GOOD, REFUSED, STOPPED, Stopped, UsageError, UserError, error_line, exit_code
from alrpc.network import resolve
from alrpc.pipeline.cause import hear_causes, heard_cause, tell_cause
from alrpc.pipeline.failures import (
    BLAME_DELAY,
    Disconnected,
    StageLost,
    hard_exit,
    kill_process,
    log_line,
    write_error_file,
)
from alrpc.pipeline.groups import rendezvous_store
from alrpc.pipeline.placement import check_pipeline, local_placement
from alrpc.pipeline.process import MakeStage, run_stage
from alrpc.pipeline.seal import SealBroken, seal, unseal
from alrpc.reading.regular import MIB, read_text
from alrpc.runtime.process import Process, log_to
from alrpc.runtime.run import Run, new_run_directory, run_coordinator
from alrpc.telemetry.recorder import last_line
from alrpc.training.stage import Stage

DIRECTORY = "directory"


@dataclass(frozen=True)
class Options:
    """The options of a run's processes, which are those of `-m alrpc.worker`. Only the coordinator reads them."""

    source: str | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    quiet: bool = False
    verbose: bool = False
    resume: Path | None = None
    step: int | None = None
    prepared: Path | None = None
    """A directory that the launcher has made and that contains the resolved configuration."""


def run_rank(process: Process, options: Options) -> None:
    """Run this rank until the end of the run; returns if it ended without failure, else ends the process."""
    rank = int(os.environ["RANK"])
    hear_causes(rank, process.secret)
    code = join_stage(process, rank) if rank else lead_run(process, options)
    if code:
        hard_exit(code)


def join_stage(process: Process, rank: int) -> int:
    """Run stage n in rank n, after the coordinator has published the run's directory; returns the process' exit code."""
    who = f"stage {rank} (rank {rank}, host {socket.gethostname()})"
    try:
        directory = Path(unseal(process.secret, rendezvous_store().get(DIRECTORY)).decode())
    except SealBroken as error:
        return end_early(f"{who}: {error}")
    except RuntimeError as error:
        if process.launcher.is_gone():
            process.launcher.end_without()
        return end_early(f"{who}: the coordinator's host ended before the run began: {error_line(error).partition('. ')[0]}")
    try:
        return run_logged_stage(process, directory, rank)
    except OSError as error:  # its log
        return end_early(f"{who} cannot write to {error.filename or directory}: {error.strerror}")


def end_early(message: str) -> int:
    """Report why a stage ends that the coordinator has not met yet; returns the exit code."""
    write_error_file(message, FAILED)
    tell_cause(message)
    return FAILED


def run_logged_stage(process: Process, directory: Path, rank: int, make: MakeStage = Stage) -> int:
    """Run the stage that `make` makes, with its output in its log; returns the process' exit code."""

    def on_terminate(ask: Callable[[], float]) -> None:
        process.signals.on_terminate = ask

    _, _, log = log_to(directory, f"stage-{rank}")
    return run_stage(local_placement(rank, log), world_size(), on_terminate, make)


def lead_run(process: Process, options: Options) -> int:
    """Run the coordinator in rank 0; prepare the run first, unless the launcher has. Returns the process' exit code."""
    launched = "ALRPC_LAUNCHER" in os.environ
    directory, terminal, errors = options.prepared, sys.stdout, sys.stderr
    try:
        if not launched and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
            options = after_restart(options, process.launcher.identity)
        with open_run(process, options, launched) as run:
            directory = run.directory
            terminal, errors, _ = log_to(directory, "coordinator")
            if not launched:
                (directory / rundir.BEGUN_BY).write_text(process.launcher.identity, encoding="utf-8")

            def ask_to_end() -> float:
                run.stopping.set()
                return run.config.checkpoint.grace

            process.signals.terminal, process.signals.on_terminate = terminal, ask_to_end
            rendezvous_store().set(DIRECTORY, seal(process.secret, str(directory).encode()))
            summary = run_coordinator(run, terminal)
    except (Exception, SystemExit) as error:
        if process.launcher.is_gone():
            process.launcher.end_without()  # the error is a consequence of the lost launcher, which hosted the store
        code, message = fail(error, directory)
        if not launched:  # under alrpc launch, the launcher prints the message
            print(f"alrpc: {message}", file=errors, flush=True)
        tell_cause(message)
        return code
    print(last_line(summary, directory), file=terminal, flush=True)
    return 0


@contextmanager
def open_run(process: Process, options: Options, launched: bool) -> Iterator[Run]:
    """The run that the options describe. Its directory is held in the context, unless the launcher holds it.

    Nothing is left of a new run that is refused.

    Raises:
        UserError: for errors that the user can correct.
    """
    stages = f"pipeline.stages={world_size() - 1}"
    if options.resume is not None:
        check_resume_options(options.source, options.out)
        with nullcontext() if launched else resuming(options.resume):
            config, components, point = load_resume_point(options.resume, [*options.overrides, stages], options.step)
            check_pipeline(config, components)
            yield Run(config, components, options.resume, process.started, options.quiet, options.verbose, point)
    elif options.prepared is not None:
        config, components = resolve(load_config(options.prepared / rundir.CONFIG))
        yield Run(config, components, options.prepared, process.started, options.quiet, options.verbose)
    else:
        config, components = resolve(load_config(options.source, [*options.overrides, stages]))
        check_pipeline(config, components)
        with new_run_directory(options.out, run_name(config), config) as directory:
            try:
                yield Run(config, components, directory, process.started, options.quiet, options.verbose)
            except UserError as error:
                if exit_code(error) == REFUSED:
                    rundir.clear_directory(directory)
                raise


def fail(error: BaseException, directory: Path | None) -> tuple[int, str]:
    """Report the cause in the error file, and kill the processes that must not outlive the run.

    Returns:
        The exit code and the message.
    """
    code = exit_code(error)
    if code not in (REFUSED, STOPPED):
        log_line(traceback.format_exc())
    message = failure_message(error, directory)
    message = heard_cause() or message  # whoever has told it saw more than a lost connection
    if "ALRPC_LAUNCHER" not in os.environ and code in (FAILED, FAILED_FOR_GOOD) and directory:
        message = f"{message}; {resume_hint(directory)}"  # under alrpc launch, the launcher adds it
    write_error_file(message, code)
    for pid in getattr(error, "pids", ()):
        kill_process(pid)
    return code, message


def failure_message(error: BaseException, directory: Path | None) -> str:
    """The one-line message that says why the run ended."""
    if isinstance(error, (UserError, Stopped)):
        return str(error)
    if isinstance(error, (Disconnected, StageLost)):
        time.sleep(BLAME_DELAY)  # the launcher may know the cause; then it ends this process first
        return f"{f'stage {error.stage} (rank {error.stage}) ' if isinstance(error, StageLost) else ''}{error}"
    log = f"; log: {rundir.log_path(directory, 'coordinator')}" if directory else ""
    return f"the coordinator (rank 0, host {socket.gethostname()}) failed: {error_line(error)}{log}"


def after_restart(options: Options, launcher: str) -> Options:
    """The options of a run whose processes torchrun has restarted because of its option --max-restarts.

    The run resumes from its last valid checkpoint, or starts again if there is none. This applies only to directories that this
    torchrun started; for any other directory the options stay unchanged.

    Raises:
        UserError: when the run's directory is not known.
    """
    run = options.resume or options.out
    if run is None:
        raise UsageError("--out: not given, so what torchrun starts again cannot find its run; give --out DIR")
    try:
        begun_by = read_text(run / rundir.BEGUN_BY, MIB)
    except UserError:
        return options
    if begun_by != launcher:
        return options
    config = load_config(run / rundir.CONFIG if options.resume else options.source, options.overrides)
    reached = last_whole_step(run, config.train.epochs)
    if reached is None and options.resume is None:
        with rundir.lock_directory(run):
            rundir.clear_directory(run)
        return replace(options, step=None)
    note_restart(run, "torchrun started the processes again", reached)
    return replace(options, source=None, out=None, resume=run, step=reached)


def measure_rank(process: Process, directory: Path, make: MakeStage, coordinate: Callable[[], None]) -> None:
    """Run this rank of a measurement: the stage that `make` makes, or the coordinator.

    Args:
        coordinate: the coordinator's work.
    """
    rank = int(os.environ["RANK"])
    code = run_logged_stage(process, directory, rank, make) if rank else run_logged(directory, "coordinator", coordinate)
    if code:
        hard_exit(code)


def run_logged(directory: Path, name: str, work: Callable[[], None]) -> int:
    """Do a process' work with its output in its log; returns the exit code, and reports the cause of a failure."""
    log_to(directory, name)
    try:
        work()
    except (Exception, SystemExit) as error:
        code, _ = fail(error, directory)
        return code
    return 0


def world_size() -> int:
    """The number of processes of the run: the stages and the coordinator."""
    return int(os.environ["WORLD_SIZE"])
