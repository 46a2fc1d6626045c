"""The common part of all processes of a run: process name, memory settings, monitoring of the launcher, log.

This module has no heavy imports, so that the monitoring starts before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TextIO

from alrpc.posix.parent import Parent
from alrpc.posix.streams import outlive_terminal, redirect, tell
from alrpc.rundir import log_path
from alrpc.runtime.secret import take_secret
from alrpc.runtime.signals import SignalThread
from alrpc.system import keep_memory

PR_SET_NAME = 15  # of Linux' prctl


class Launcher(Parent):
    """The process that started this one of a run, directly or through a fork server: `alrpc`, or torchrun's agent."""

    def __init__(self):
        super().__init__()
        self._exit_lock = threading.Lock()

    @property
    def identity(self) -> str:
        """Its process id and when it was started: the id alone may be that of another one later, or in another container."""
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
            return f"{self.pid} {stat.rpartition(')')[2].split()[19]}"
        return str(self.pid)

    def end_without(self) -> NoReturn:
        """End this process because its launcher has ended; the coordinator prints the reason."""
        self._exit_lock.acquire()  # never released, so that only the first thread prints the reason
        if os.environ.get("RANK") == "0":
            who = "launcher" if self.has_ended() else "fork server of the launcher"
            message = f"the {who} (pid {self.pid}, host {os.uname().nodename}) was killed; the run has ended"
            tell(f"\nalrpc: {message}")
        super().end_without()


@dataclass(frozen=True)
class Process:
    """This process of a run."""

    started: float
    """When the command was started, on the system's clock."""
    secret: bytes
    """The secret that the processes of the run share."""
    launcher: Launcher = field(default_factory=Launcher)
    signals: SignalThread = field(default_factory=SignalThread)


def begin_process(keeps_memory: bool = True) -> Process:
    """Set the process name and memory settings, and start handling signals and monitoring the launcher.

    Call this before any thread is started.

    Raises:
        UserError: when the run has no secret; see `alrpc.runtime.secret.take_secret`.
    """
    outlive_terminal()
    set_name(f"alrpc-rank-{os.environ.get('RANK', '')}")
    if keeps_memory:
        keep_memory()
    process = Process(float(os.environ.get("ALRPC_STARTED", time.time())), take_secret())
    process.signals.start()
    process.launcher.watch()
    return process


def set_name(name: str) -> None:
    """Set the name that `ps -o comm` and `top` show for this process; Linux keeps 15 characters."""
    prctl(PR_SET_NAME, name.encode())


def prctl(option: int, value: int | bytes) -> None:
    """Set an attribute of this process by Linux' prctl; does nothing on another system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def log_to(directory: Path, name: str) -> tuple[TextIO, TextIO, str]:
    """Redirect this process' output, including that of libraries, to its log.

    Returns:
        Streams to the previous standard output and standard error, and the path of the log.
    """
    path = log_path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return *redirect(path), str(path)
