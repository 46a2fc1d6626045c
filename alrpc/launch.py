"""`alrpc launch`: a pipeline's run on this machine, begun or gone on with, and again after a failure."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from alrpc.agent import FailedForGood, Refused, RunFailed, listening_socket, run_processes
from alrpc.assembly import check_pipeline, local_device, resolve
from alrpc.config import Config, parse_config
from alrpc.errors import Interrupted
from alrpc.observe.record import RESTARTS
from alrpc.resume import STOP, code_of, last_whole_step, note_restart, offer, read_resume
from alrpc.run import create_run_directory


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
    if stages is not None:
        tree = config.model_dump(exclude_unset=True)  # a model may have other defaults
        config = parse_config({**tree, "pipeline": {**tree.get("pipeline", {}), "stages": stages}})
    config, components = resolve(config)
    check_pipeline(config, components)
    local_device(config.device)
    with listening_socket(config.pipeline.port) as listener:
        directory = create_run_directory(Path(out) if out is not None else None, name, config)
        again = [f"{field}={value}" for field, value in code_of(config).items()]
        run_with_restarts(["--prepared", str(directory)], config, directory, listener, quiet, max_restarts, again)
    return json.loads((directory / "summary.json").read_text(encoding="utf-8")), directory


def resume_pipeline(
    directory: Path | str, overrides: Sequence[str] = (), step: int | None = None, *, quiet: bool = True, max_restarts: int = 0
) -> tuple[dict, Path]:
    """Go on with a run of either engine from its last checkpoint, on as many stages as wanted.

    Args:
        directory: the run's, which goes on being it.
        overrides: `section.field=value`, of what may change: see `alrpc.resume.MAY_CHANGE`.
        step: of the checkpoint to go on from; None for the last one.

    Returns, raises:
        As `launch_pipeline`.
    """
    directory = Path(directory)
    config, _, resume = read_resume(directory, overrides, step)
    local_device(config.device)
    with listening_socket(config.pipeline.port) as listener:
        arguments = resume_arguments(directory, resume.step, overrides)
        run_with_restarts(arguments, config, directory, listener, quiet, max_restarts, overrides, keep=True)
    return json.loads((directory / "summary.json").read_text(encoding="utf-8")), directory


def resume_arguments(directory: Path, step: int, overrides: Sequence[str]) -> list[str]:
    fields = [part for override in overrides for part in ("--set", override)]
    return ["--resume", str(directory), "--step", str(step), *fields]


def run_with_restarts(
    arguments: list[str],
    config: Config,
    directory: Path,
    listener: socket.socket,
    quiet: bool,
    max_restarts: int,
    overrides: Sequence[str],
    keep: bool = False,
) -> None:
    """Run the pipeline's processes; when one fails, again from the last whole checkpoint, or from the beginning if there is none.

    Each attempt has an agent of its own. torchelastic's own restarts would tell neither the cause nor what is no use repeating.

    Args:
        overrides: of the configuration, for an attempt that goes on from a checkpoint.
        keep: whether the directory stays when the first attempt is refused.
    """
    begin = ["alrpc.worker", *(["--quiet"] if quiet else [])]
    processes, grace = config.pipeline.stages + 1, config.checkpoint.grace
    for left_by_another in (RESTARTS, STOP):
        (directory / left_by_another).unlink(missing_ok=True)
    for attempt in range(1, max_restarts + 2):
        try:
            run_processes([*begin, *arguments], processes, directory, listener, keep=keep or attempt > 1, grace=grace)
            return
        except Refused:
            raise
        except Interrupted as error:
            raise Interrupted(error.number, f"; {offer(directory)}") from error
        except RunFailed as error:
            if attempt > max_restarts or isinstance(error, FailedForGood):
                raise type(error)(f"{error}; {offer(directory)}") from error
            step = last_whole_step(directory, config.train.epochs)
            note_restart(directory, str(error), step)
            place = f"step {step}" if step else "the beginning"
            print(f"alrpc: {error}; restart {attempt} of {max_restarts}, from {place}", file=sys.stderr, flush=True)
            if step:
                arguments = resume_arguments(directory, step, overrides)
            listener.close()
            listener = listening_socket(config.pipeline.port)
