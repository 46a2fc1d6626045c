"""One process of a pipeline: rank 0 is the coordinator, rank n is stage n. Started by torchrun or by `alrpc launch`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from alrpc.process import (
    PARENT,
    end_without_parent,
    ending,
    heed_signals,
    keep_memory,
    kill_beside,
    leave,
    log_line,
    log_path,
    log_to,
    tell_agent,
    watch_parent,
)

STARTED = float(os.environ.get("ALRPC_STARTED", time.time()))
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's own warnings are not about the run
os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # the control plane tells who died; no watchdog need abort
warnings.filterwarnings("ignore", module="torch.distributed")


if __name__ == "__main__":
    keep_memory()
    heed_signals()
    watch_parent()  # before the long import of torch

import click

from alrpc.assembly import build_network, check_pipeline, resolve
from alrpc.config import config_name, load_config
from alrpc.errors import Stopped, UserError
from alrpc.observe.record import last_line
from alrpc.pipeline.control import Disconnected, StageLost
from alrpc.pipeline.coordinator import GRACE, StageFailed
from alrpc.pipeline.meeting import meeting_point
from alrpc.pipeline.stage import MakeStage, run_stage
from alrpc.pipeline.topology import place_here
from alrpc.resume import check_resume_options, last_whole_step, note_restart, offer, read_resume
from alrpc.run import (
    FAILED,
    FAILED_FOR_GOOD,
    REFUSED,
    STOPPED,
    create_run_directory,
    discard_run_directory,
    run_coordinator,
)

DIRECTORY = "directory"
BEGUN_BY = Path("logs") / "torchrun"  # in a run's directory: the process that started those which train in it
WITHIN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@click.command()
@click.option("--config", "source", metavar="FILE", help="YAML file, or the name of a configuration that ships with alrpc.")
@click.option("--set", "overrides", metavar="SECTION.FIELD=VALUE", multiple=True, help="Override a field; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the run.  [default: runs/<config>-<time>]")
@click.option("--quiet", is_flag=True, help="Show nothing but the last line.")
@click.option("--resume", metavar="DIR", type=click.Path(path_type=Path), help="Go on with this run from its last checkpoint.")
@click.option("--step", type=click.IntRange(min=1), help="Go on from the checkpoint of this step instead of the last.")
@click.option("--prepared", type=click.Path(path_type=Path), hidden=True)
def main(
    source: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    quiet: bool,
    resume: Path | None,
    step: int | None,
    prepared: Path | None,
) -> None:
    """One process of a pipeline, to be started by torchrun:

    \b
        torchrun --nproc-per-node 5 -m alrpc.worker --config FILE

    Rank 0 is the coordinator, rank n is stage n, so --nproc-per-node is the number of stages plus one. The number of
    stages is taken from there. Only the coordinator reads the configuration; it tells the stages what they need.
    """
    missing = [name for name in WITHIN if name not in os.environ]
    if missing:
        print(f"alrpc: {missing[0]} is not set; start this with torchrun, or use alrpc launch", file=sys.stderr)
        sys.exit(2)
    rank = int(os.environ["RANK"])
    code = be_stage(rank) if rank else be_coordinator(source, overrides, out, quiet, resume, step, prepared)
    leave(code)


def be_coordinator(
    source: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    quiet: bool,
    resume: Path | None,
    step: int | None,
    prepared: Path | None,
) -> int:
    """Rank 0: prepare the run, unless the launcher has, and see it through. Returns the process' exit code."""
    directory, terminal, errors = prepared, sys.stdout, sys.stderr
    is_new, place = False, None
    try:
        if prepared is None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
            source, out, resume, step = after_restart(source, out, resume, step, overrides)
        if resume is not None:
            check_resume_options(source, out)
            config, components, place = read_resume(resume, [*overrides, f"pipeline.stages={stages()}"], step)
            directory = resume
        elif prepared is None:
            config, components = resolve(load_config(source, [*overrides, f"pipeline.stages={stages()}"]))
            check_pipeline(config, components)
            directory = create_run_directory(out, config_name(source), config)
            is_new = True
        else:
            config, components = resolve(load_config(prepared / "config.yaml"))
        terminal, errors, _ = log_to(directory, "coordinator")
        if "ALRPC_LAUNCHER" not in os.environ:
            (directory / BEGUN_BY).write_text(str(PARENT), encoding="utf-8")
        told_to_end = threading.Event()

        def tell() -> float:
            told_to_end.set()
            return config.checkpoint.grace

        ending.terminal, ending.told = terminal, tell
        meeting_point().set(DIRECTORY, str(directory))
        summary = run_coordinator(config, components, directory, quiet, terminal, STARTED, place, told_to_end)
    except Exception as error:
        if os.getppid() != PARENT:
            end_without_parent()  # the store went with the launcher; what broke here is a consequence
        code = code_for(error)
        if code == REFUSED:
            if is_new:
                discard_run_directory(directory)
        elif code != STOPPED:
            log_line(traceback.format_exc())
        message = explain(error, directory)
        tell_agent(message, code)
        for place in getattr(error, "places", ()):
            kill_beside(place.pid)
        if "ALRPC_LAUNCHER" not in os.environ:  # otherwise the launcher prints it
            last = f"; {offer(directory)}" if code in (FAILED, FAILED_FOR_GOOD) and directory else ""
            print(f"alrpc: {message}{last}", file=errors, flush=True)
        return code
    print(last_line(summary, directory), file=terminal, flush=True)
    return 0


def after_restart(
    source: str | None, out: Path | None, resume: Path | None, step: int | None, overrides: tuple[str, ...]
) -> tuple[str | None, Path | None, Path | None, int | None]:
    """torchrun, by its --max-restarts, has started all processes again: gives the options --config, --out, --resume and --step
    for the run to go on from its last checkpoint, or to begin again if there is none. A directory that this torchrun's processes
    did not train in before is none of its business: the options stay.

    Raises:
        UserError: when it cannot be known where the run was.
    """
    run = resume or out
    if run is None:
        raise UserError("--out: not given, so what torchrun starts again cannot find its run; give --out DIR")
    begun_by = (run / BEGUN_BY).read_text(encoding="utf-8") if (run / BEGUN_BY).is_file() else ""
    if begun_by != str(PARENT):
        return source, out, resume, step
    epochs = load_config(run / "config.yaml" if resume else source, overrides).train.epochs
    reached = last_whole_step(run, epochs)
    if reached is None and resume is None:
        discard_run_directory(run)
        return source, out, None, None
    note_restart(run, "torchrun started the processes again", reached)
    return None, None, run, None


def code_for(error: Exception) -> int:
    """The exit code that says how the run ended."""
    if isinstance(error, Stopped):
        return STOPPED
    if isinstance(error, StageFailed):
        return FAILED if error.again else FAILED_FOR_GOOD
    return REFUSED if isinstance(error, UserError) else FAILED


def explain(error: Exception, directory: Path | None) -> str:
    """The one line that says why the run ended."""
    if isinstance(error, (UserError, Stopped)):
        return str(error)
    if isinstance(error, (Disconnected, StageLost)):
        time.sleep(GRACE)  # the launcher may know the cause; then it ends this process first
        return f"{f'stage {error.stage} (rank {error.stage}) ' if isinstance(error, StageLost) else ''}{error}"
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    log = f"; log: {log_path(directory, 'coordinator')}" if directory else ""
    return f"the coordinator (rank 0, host {socket.gethostname()}) failed: {cause}{log}"


def be_stage(rank: int) -> int:
    """Rank n: stage n. Returns the process' exit code."""
    directory = Path(meeting_point().get(DIRECTORY).decode())
    _, _, log = log_to(directory, f"stage-{rank}")
    return run_stage(place_here(rank, log), stages() + 1, build_network)


def take_part(directory: Path, make: MakeStage, lead: Callable[[], None]) -> None:
    """Be the process of this rank in a run that trains to be measured: a stage as `make` builds it, or the coordinator, which does
    what `lead` says; ends the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    rank = int(os.environ["RANK"])
    if rank:
        _, _, log = log_to(directory, f"stage-{rank}")
        leave(run_stage(place_here(rank, log), stages() + 1, build_network, make))
    log_to(directory, "coordinator")
    try:
        lead()
    except Exception as error:
        log_line(traceback.format_exc())
        code = code_for(error)
        tell_agent(explain(error, directory), code)
        leave(code)
    leave(0)


def stages() -> int:
    return int(os.environ["WORLD_SIZE"]) - 1


if __name__ == "__main__":
    main()
