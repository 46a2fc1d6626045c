"""The processes of a run on this machine, which torch's elastic agent starts, monitors and ends; they meet through a file."""

from __future__ import annotations

import json
import logging
import multiprocessing.util
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's own warnings are not about the run

from pydantic import TypeAdapter
from torch.distributed import FileStore, PrefixStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from typing_extensions import TypedDict

from alrpc.errors import OF_EXIT_CODE, Interrupted, RunFailed, StartupError
from alrpc.pipeline.failures import AGENT_INTERVAL, CAUSES, SHUTDOWN_TIMEOUT, hard_exit
from alrpc.pipeline.groups import STORE
from alrpc.pipeline.private_network import NETWORK, enter_user_namespace
from alrpc.pipeline.seal import seal_pickles
from alrpc.rundir import AGENT, STOP, clear_directory, log_path, read_reached
from alrpc.runtime.forkserver import environment, launch_environment, start_fork_server, startable
from alrpc.runtime.process import begin_process
from alrpc.runtime.secret import SECRET, new_secret
from alrpc.runtime.signals import heeded, restored_signals, terminate_twice
from alrpc.system import command_line


class ErrorFile(TypedDict):
    """What a process leaves that knows why the run ends; see `alrpc.pipeline.failures.write_error_file`."""

    message: str
    code: int


LOOPBACK = "127.0.0.1"
BACKEND = "alrpc-file"
ENDING = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # these end a run at once, without a checkpoint
OF_RANK = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
)
"""The environment variables that the agent sets for each process, besides TORCHELASTIC_*."""
CAUSE = TypeAdapter(ErrorFile)
MOST_FORKED = 100  # processes; a request to the fork server carries file descriptors for each, and the system limits those


class FileRendezvous(RendezvousHandler):
    """The rendezvous of one agent on one machine, in a file that only this user can open; torch's own store listens on a port."""

    def __init__(self, parameters: RendezvousParameters):
        self._store = FileStore(parameters.endpoint)

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(PrefixStore("agent", self._store), 0, 1, RendezvousStoreInfo(LOOPBACK, 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "alrpc"

    def shutdown(self) -> bool:
        return True


registry.register(BACKEND, FileRendezvous)


def pipeline_role(rank: int) -> str:
    """The name of a pipeline's process, and of its log."""
    return f"stage {rank}" if rank else "coordinator"


def process_role(rank: int) -> str:
    """The name of a process if all processes have the same role."""
    return f"process {rank + 1}"


@dataclass(frozen=True)
class Launch:
    """The function that the processes of a run execute, and how they are started.

    `function` is a module-level function; each process calls it with an `alrpc.runtime.process.Process` and the arguments.
    """

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    processes: int
    role: Callable[[int], str] = pipeline_role
    """The name of a rank's process, for messages and for its log."""
    silent: bool = False
    """Do not show the output of the processes on the terminal."""
    grace: float = 0.0
    """Seconds that the processes have for a checkpoint after SIGTERM; 0 if they take none."""
    variables: Mapping[str, str] | None = None
    """Environment variables for processes that are spawned; None for processes that the fork server forks."""


def run_processes(launch: Launch, directory: Path, keep: bool = False) -> None:
    """Run processes that meet through a file, and wait until all have ended without failure.

    Args:
        directory: the run's directory, which the caller holds; it gets logs/.
        keep: whether to keep what is in the directory when the run is refused.

    Raises:
        RunFailed: when a process failed; names the process, its host, the cause and its log.
        Stopped: when this process received SIGTERM and the run has taken a checkpoint.
        Interrupted: when this process received another signal, or no checkpoint could be taken in time.
    """
    logs = directory / "logs"
    logs.mkdir(exist_ok=True)
    with logging_to(logs / "launcher.log"), scratch_directory(directory / AGENT) as scratch:
        try:
            start_processes(launch, directory, scratch)
        except StartupError:
            if not keep:
                clear_directory(directory)
            raise


def start_processes(launch: Launch, directory: Path, scratch: Path) -> None:
    """Run the processes under torch's elastic agent; raises like `run_processes`."""
    with memory_file("rendezvous") as meeting, memory_file("causes") as causes:
        run_agent(launch, directory, scratch, meeting, causes)


def run_agent(launch: Launch, directory: Path, scratch: Path, meeting: TextIO, causes: TextIO) -> None:
    """Run the agent, with a file for the rendezvous and one for the causes of failures; raises like `run_processes`."""
    forks = launch.variables is None and launch.processes <= MOST_FORKED
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=launch.processes,
        run_id="alrpc",
        rdzv_backend=BACKEND,
        rdzv_endpoint=path_of(meeting),
        max_restarts=0,
        monitor_interval=AGENT_INTERVAL,
        start_method="forkserver" if forks else "spawn",
        local_addr=LOOPBACK,
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch), redirects=Std.OUT if launch.silent else Std.NONE),
        signals_to_handle=",".join(each.name for each in heeded(ENDING if launch.grace else (*ENDING, signal.SIGTERM))),
        **({"shutdown_timeout": SHUTDOWN_TIMEOUT} if "shutdown_timeout" in LaunchConfig.__dataclass_fields__ else {}),
    )
    kills = kills_for_want_of_memory()
    if forks:
        start_fork_server()
    with (
        environment(run_environment(launch, meeting, causes)),
        startable(),
        restored_signals(),
        asking_to_end(directory / STOP, launch.grace),
    ):
        try:
            path = [each or str(Path.cwd()) for each in sys.path]
            elastic_launch(settings, enter_rank)(dict(os.environ), path, forks, launch.function, launch.arguments)
        except ChildFailedError as error:
            show_cursor()
            message, code = read_cause(causes)
            message = message or describe_exit(error.failures, directory, launch.role, kills_for_want_of_memory() > kills)
            raise OF_EXIT_CODE.get(code, RunFailed)(message) from error
        except (EOFError, ConnectionError) as error:  # in the middle of a start
            raise RunFailed("the fork server of the launcher was killed while it started the run's processes") from error
        except SignalException as error:
            show_cursor()
            raise Interrupted(error.sigval) from error


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """A directory that is removed at the end. It lies in the run's, so a launcher that is killed leaves nothing elsewhere."""
    shutil.rmtree(path, ignore_errors=True)  # it is there if the launcher of this run was killed before
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def memory_file(name: str) -> TextIO:
    """A file in memory, which only processes of this user can open, and which ends with this process."""
    return os.fdopen(os.memfd_create(name), encoding="utf-8")


def path_of(file: TextIO) -> str:
    """The path by which other processes can open a file of this one."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def run_environment(launch: Launch, meeting: TextIO, causes: TextIO) -> dict[str, str]:
    """Environment variables for the processes of a run: loopback for both planes, the launcher's process id, the secret, and the
    files for the rendezvous and for the causes of failures."""
    return {
        "GLOO_SOCKET_IFNAME": "lo",
        "TP_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "ALRPC_STARTED": str(time.time()),
        "ALRPC_LAUNCHER": str(os.getpid()),
        "ALRPC_COMMAND": json.dumps(command_line()),
        CAUSES: path_of(causes),
        STORE: path_of(meeting),
        SECRET: new_secret(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        **launch_environment(),
        **(launch.variables or {}),
    }


def enter_rank(
    variables: dict[str, str], path: list[str], forked: bool, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """Take over the launcher's environment and run the function of a launch, in the process of a rank.

    Only a function that returns has ended well: the process ends with exit code 1 for whatever it raises, SystemExit too. At
    the end nothing is waited for, neither threads nor processes that the user's code has left.

    Args:
        variables: the launcher's environment, which may have changed since the fork server started.
        path: its sys.path.
    """
    own = {name: value for name, value in os.environ.items() if name in (*OF_RANK, NETWORK) or name.startswith("TORCHELASTIC_")}
    os.environ.clear()
    os.environ.update({**variables, **own})
    sys.path[:] = path
    with suppress(PermissionError):
        os.setsid()  # so that a signal from the terminal reaches only the launcher, which then ends its processes
    try:
        keep_open()
        enter_user_namespace()
        process = begin_process(keeps_memory=forked)
        seal_pickles(process.secret)
        function(process, *arguments)
    except (Exception, SystemExit):
        traceback.print_exc()
        hard_exit(1)
    multiprocessing.util.Finalize(None, hard_exit, args=(0,), exitpriority=100)  # once the agent knows that all have returned


def keep_open() -> None:
    """Open the launcher's files in memory, so that they can be reached from another user namespace too."""
    for name in (STORE, CAUSES):
        os.environ[name] = f"/proc/self/fd/{os.open(os.environ[name], os.O_RDWR)}"


def asking_to_end(request: Path, grace: float):
    """On SIGTERM request a checkpoint and the end of the run, by a file for the coordinator.

    A second SIGTERM, or the end of the grace period, ends the run at once.
    """
    if not grace:
        return nullcontext()

    @contextmanager
    def handle_sigterm() -> Iterator[None]:
        def request_end() -> None:
            with suppress(OSError):  # the disk is full; then the end of the grace period ends the run
                request.touch()

        try:
            with terminate_twice(grace, request_end, SignalException("told to end", signal.SIGTERM)):
                yield
        finally:
            request.unlink(missing_ok=True)

    return handle_sigterm()


def show_cursor() -> None:
    """Show the cursor again, which the live view of a killed coordinator may have left hidden."""
    with suppress(OSError):
        if sys.stdout is not None and sys.stdout.isatty():
            print("\x1b[?25h", end="", flush=True)


def kills_for_want_of_memory() -> int:
    """The number of processes that Linux has killed since boot because it was out of memory."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def read_cause(causes: TextIO) -> tuple[str | None, int | None]:
    """The message and exit code of the process that was the first to write a cause, even if others ended before it."""
    with suppress(ValueError):  # there is none, or its process was killed as it wrote
        cause = CAUSE.validate_json(causes.readline())
        return cause["message"], cause["code"]
    return None, None


def describe_exit(failures: dict[int, ProcessFailure], directory: Path, role: Callable[[int], str], no_memory: bool) -> str:
    """The message for a run whose processes left no cause. torchelastic lists the process that it saw fail first, and then the
    processes that it ended."""
    rank, failure = next(iter(failures.items()))
    who = role(rank)
    log = log_path(directory, who.replace(" ", "-"))
    number = -failure.exitcode if failure.exitcode < 0 else failure.exitcode - 128
    if number in set(signal.Signals):
        cause = f"was killed by {signal.Signals(number).name}"
        if number == signal.SIGKILL and no_memory:
            cause += ", as Linux does when there is no memory left"
    else:
        cause = f"ended with exit code {failure.exitcode}"
    packet = read_reached(directory)["packets"].get(str(rank))
    last = f"; last packet: {packet}" if packet else ""
    return f"{'' if rank else 'the '}{who} (rank {rank}, host {socket.gethostname()}) {cause}{last}; log: {log}"


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write the log lines of torchelastic to a file instead of the terminal. A full disk loses lines, but does not end the run."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.handleError = lambda record: None
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch"]
    before = [(logger, logger.handlers) for logger in loggers if logger.handlers]
    for logger, _ in before:
        logger.handlers = [handler]
    try:
        yield
    finally:
        for logger, handlers in before:
            logger.handlers = handlers
        with suppress(OSError):
            handler.close()
