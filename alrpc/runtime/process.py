"""The common part of all processes of a run: process name, memory settings, monitoring of the launcher, log.

This module has no heavy imports, so that the monitoring starts before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TextIO

from alrpc.pipeline.failures import PARENT_CHECK, TERMINAL
from alrpc.rundir import log_path
from alrpc.runtime.signals import SignalThread
from alrpc.system import keep_memory

PR_SET_NAME = 15  # of Linux' prctl


class Launcher:
    """The process that started this one, directly or through a fork server: `alrpc`, or torchrun's agent."""

    def __init__(self):
        self._parent = os.getppid()
        self.pid = int(os.environ.get("ALRPC_LAUNCHER", self._parent))
        self._exit_lock = threading.Lock()
        self._gone = False
        self._descriptor: int | None = None
        try:
            self._descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._gone = True
        except (OSError, AttributeError):  # the system has no pidfd; then the pid is checked instead
            pass

    @property
    def identity(self) -> str:
        """Its process id and when it was started: the id alone may be that of another one later, or in another container."""
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
            return f"{self.pid} {stat.rpartition(')')[2].split()[19]}"
        return str(self.pid)

    def is_gone(self) -> bool:
        """Whether the launcher, or the fork server between it and this process, has ended."""
        return self._gone or os.getppid() != self._parent or self._has_ended(0)

    def _has_ended(self, timeout: float) -> bool:
        """Whether the launcher has ended, or ends within `timeout` seconds."""
        if self._descriptor is not None:
            poll = select.poll()  # one for each call, since several threads may call this
            poll.register(self._descriptor, select.POLLIN)  # readable once the process has ended
            return bool(poll.poll(1000 * timeout))
        time.sleep(timeout)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def watch(self) -> None:
        """End this process when the launcher has ended for any reason, so that no orphan is left."""
        threading.Thread(target=self._watch, name="watch-launcher", daemon=True).start()

    def _watch(self) -> None:
        while not self.is_gone():
            self._has_ended(PARENT_CHECK)
        self.end_without()

    def end_without(self) -> NoReturn:
        """End this process because its launcher has ended; the coordinator prints the reason."""
        self._exit_lock.acquire()  # never released, so that only the first thread prints the reason
        if os.environ.get("RANK") == "0":
            who = "launcher" if self._gone or self._has_ended(0) else "fork server of the launcher"
            message = f"the {who} (pid {self.pid}, host {os.uname().nodename}) was killed; the run has ended"
            os.write(TERMINAL, f"\nalrpc: {message}\n".encode())
        os._exit(1)


@dataclass(frozen=True)
class Process:
    """This process of a run."""

    started: float
    """When the command was started, on the system's clock."""
    launcher: Launcher = field(default_factory=Launcher)
    signals: SignalThread = field(default_factory=SignalThread)


def begin_process(keeps_memory: bool = True) -> Process:
    """Set the process name and memory settings, and start handling signals and monitoring the launcher.

    Call this before any thread is started.
    """
    set_name(f"alrpc-rank-{os.environ.get('RANK', '')}")
    if keeps_memory:
        keep_memory()
    process = Process(float(os.environ.get("ALRPC_STARTED", time.time())))
    process.signals.start()
    process.launcher.watch()
    return process


def set_name(name: str) -> None:
    """Set the name that `ps -o comm` and `top` show for this process; Linux keeps 15 characters."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def log_to(directory: Path, name: str) -> tuple[TextIO, TextIO, str]:
    """Redirect this process' output, including that of libraries, to its log.

    Returns:
        Streams to the previous standard output and standard error, and the path of the log.
    """
    path = log_path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal, errors = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return terminal, errors, str(path)
