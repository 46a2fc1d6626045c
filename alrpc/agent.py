"""The processes of a run on this machine: started, watched and ended by torch's elastic agent; they meet on loopback."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's own warnings are not about the run

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alrpc.errors import Interrupted, Stopped, UserError
from alrpc.observe.record import read_reached
from alrpc.process import log_path
from alrpc.resume import STOP
from alrpc.run import FAILED_FOR_GOOD, REFUSED, STOPPED, discard_run_directory

LOOPBACK = "127.0.0.1"
BACKEND = "alrpc-loopback"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM)
ENDING = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # at once, whatever there is to keep


class RunFailed(UserError):
    """A run ended before its end; the message names the process, its host, the cause and its log."""


class FailedForGood(RunFailed):
    """A run ended by what would happen again, such as a loss that is not finite."""


class Refused(RunFailed):
    """The coordinator could not begin: its data, or a device, is not there. Nothing of the run is left."""


def listening_socket(port: int) -> socket.socket:
    """A socket bound to loopback, before anything is written.

    Raises:
        UserError: when the port is in use.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise UserError(f"pipeline.port: got {port}: {error.strerror}; give a free port, or 0 for any") from error
    listener.listen()
    return listener


class LoopbackRendezvous(RendezvousHandler):
    """One agent, one machine: the store listens on a socket bound to loopback, where torch's own listens everywhere."""

    def __init__(self, parameters: RendezvousParameters):
        descriptor = parameters.get_as_int("listen_fd")  # the store closes it
        host, port = parameters.endpoint.split(":")
        self._store = TCPStore(host, int(port), is_master=True, wait_for_workers=False, master_listen_fd=descriptor)
        self._address = RendezvousStoreInfo(host, int(port))

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(PrefixStore("agent", self._store), 0, 1, self._address)

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


registry.register(BACKEND, LoopbackRendezvous)


def pipeline_role(rank: int) -> str:
    """What a process of a pipeline is called; its log is called so too."""
    return f"stage {rank}" if rank else "coordinator"


def process_role(rank: int) -> str:
    """What a process is called where all are alike."""
    return f"process {rank + 1}"


def run_processes(
    arguments: list[str],
    processes: int,
    directory: Path,
    listener: socket.socket,
    role: Callable[[int], str] = pipeline_role,
    silent: bool = False,
    keep: bool = False,
    grace: float = 0.0,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Run `python -m <arguments>` in so many processes that meet on loopback, and wait until all have ended well.

    Args:
        directory: of the run; holds logs/.
        listener: where they meet.
        role: what the process of a rank is called, in messages and as the name of its log.
        silent: keep what they print from the terminal.
        keep: whether the directory stays when the run is refused.
        grace: seconds that SIGTERM leaves them to take a checkpoint and end; 0 for those that take none.
        variables: of their environment, instead of what any run's processes have there.

    Raises:
        RunFailed: when a process failed; names the process, its host, the cause and its log.
        Stopped: when this process was told to end by SIGTERM, and the run has taken a checkpoint first.
        Interrupted: when this process was told to end otherwise, or no checkpoint could be taken in time.
    """
    logs = directory / "logs"
    logs.mkdir(exist_ok=True)
    with (
        logging_to(logs / "launcher.log"),
        tempfile.TemporaryDirectory(prefix="alrpc-", ignore_cleanup_errors=True) as scratch,
    ):
        try:
            start_processes(arguments, processes, directory, listener, Path(scratch), role, silent, grace, variables or {})
        except Refused:
            if not keep:
                discard_run_directory(directory)
            raise


def start_processes(
    arguments: list[str],
    processes: int,
    directory: Path,
    listener: socket.socket,
    scratch: Path,
    role: Callable[[int], str],
    silent: bool,
    grace: float,
    variables: Mapping[str, str],
) -> None:
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="alrpc",
        rdzv_backend=BACKEND,
        rdzv_endpoint=f"{LOOPBACK}:{listener.getsockname()[1]}",
        rdzv_configs={"listen_fd": os.dup(listener.fileno())},
        max_restarts=0,
        monitor_interval=0.1,
        local_addr=LOOPBACK,
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch), redirects=Std.OUT if silent else Std.NONE),
        signals_to_handle=",".join(number.name for number in (ENDING if grace else SIGNALS[:4])),
        **({"shutdown_timeout": 5} if "shutdown_timeout" in LaunchConfig.__dataclass_fields__ else {}),
    )
    kills = kills_for_want_of_memory()
    with environment(variables), own_signals(), asking_to_end(directory / STOP, grace):
        try:
            elastic_launch(settings, sys.executable)("-P", "-m", *arguments)
        except ChildFailedError as error:
            show_cursor()
            message, code = told_by_a_process(scratch)
            message = message or explain(error.failures, directory, role, kills_for_want_of_memory() > kills)
            kinds = {REFUSED: Refused, FAILED_FOR_GOOD: FailedForGood, STOPPED: Stopped}
            raise kinds.get(code, RunFailed)(message) from error
        except SignalException as error:
            show_cursor()
            raise Interrupted(error.sigval) from error


@contextmanager
def asking_to_end(request: Path, grace: float) -> Iterator[None]:
    """Let SIGTERM ask the coordinator, by a file, for a checkpoint and the end; a second one, or the end of the grace period, ends it."""

    def end(*_) -> None:
        raise SignalException("told to end", signal.SIGTERM)

    def ask(*_) -> None:
        signal.signal(signal.SIGTERM, end)
        signal.setitimer(signal.ITIMER_REAL, grace)
        with suppress(OSError):  # a full disk; then the grace period ends it
            request.touch()

    if not grace or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGALRM, end)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        request.unlink(missing_ok=True)


def show_cursor() -> None:
    """Undo what the live view of a coordinator that was killed has left."""
    if sys.stdout.isatty():
        print("\x1b[?25h", end="", flush=True)


def kills_for_want_of_memory() -> int:
    """Processes that Linux has killed because there was no memory left, since it began."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def told_by_a_process(scratch: Path) -> tuple[str | None, int | None]:
    """What the first process to know why the run ended said of it, whether it was the first to go or not; and its exit code."""
    files = sorted(scratch.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns)
    told = json.loads(files[0].read_text(encoding="utf-8")) if files else {}
    return told.get("message"), told.get("code")


def explain(failures: dict[int, ProcessFailure], directory: Path, role: Callable[[int], str], no_memory: bool) -> str:
    """One message for a run whose processes did not say why. torchelastic lists the one that it saw fail first; those that it
    ended follow."""
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
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """What the processes inherit: loopback for both planes, this process' modules, its id for their watch over it."""
    settings = {
        "GLOO_SOCKET_IFNAME": "lo",
        "TP_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "ALRPC_STARTED": str(time.time()),
        "ALRPC_LAUNCHER": str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # Heaps in large pages. torch's THP_MEM_ALLOC_ENABLE does so too, but aligns each tensor, and the heap never ceases to grow.
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        **variables,
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def own_signals() -> Iterator[None]:
    """torchelastic replaces this process' signal handlers; put them back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Keep log lines of torchelastic from the terminal. A disk that is full costs lines, not the run."""
    handler = logging.FileHandler(path)
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
