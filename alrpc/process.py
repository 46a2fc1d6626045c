"""What every process of a run does beside its work: keeps its memory, watches over its parent, writes a log, leaves the cause
of a failure.

Imports nothing heavy, so that the watch begins before torch is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

PARENT = int(os.environ.get("ALRPC_LAUNCHER", os.getppid()))
TERMINAL = os.dup(2)  # standard error as it is now; later it is the log
telling = threading.Lock()
HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_memory() -> None:
    """Keep memory that was freed for the next step.

    Otherwise glibc gives a step's activations back to the system and takes them again, a page fault for every 4 KiB, in one
    process more than in another, by chance of how its heap is laid out.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def watch_parent() -> None:
    """End this process when the one that started it is gone, so that no orphan is left whatever killed it."""

    def watch() -> None:
        while os.getppid() == PARENT:
            time.sleep(0.5)
        end_without_parent()

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def end_without_parent() -> None:
    telling.acquire()  # for good: whichever thread notices first tells
    if os.environ.get("RANK") == "0":
        host = os.uname().nodename
        os.write(TERMINAL, f"\nalrpc: the launcher (pid {PARENT}, host {host}) was killed; the run has ended\n".encode())
    os._exit(1)


class Ending:
    """How this process ends on a signal."""

    terminal: TextIO | None = None
    """Where a live view may have hidden the cursor."""
    told: Callable[[], float] | None = None
    """Called for SIGTERM, unless it is from the launcher, which sends it when there is nothing left to wait for; gives the
    seconds that are left."""


ending = Ending()


def heed_signals() -> None:
    """End on a signal as any process, but as `ending` says; to be called before any other thread begins.

    A thread waits for them, since the main one may be inside a library, where no Python handler runs.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)

    def wait() -> None:
        signalled = signal.sigwaitinfo(HEEDED)
        number, sender = signalled.si_signo, signalled.si_pid
        if number == signal.SIGTERM and ending.told is not None and str(sender) != os.environ.get("ALRPC_LAUNCHER"):
            again = signal.sigtimedwait(HEEDED, ending.told())
            number = again.si_signo if again else number
        if ending.terminal is not None and ending.terminal.isatty():
            ending.terminal.write("\x1b[?25h\n")
            ending.terminal.flush()
        os._exit(128 + number)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def log_path(directory: Path, name: str) -> Path:
    return directory / "logs" / f"{name}.log"


def log_to(directory: Path, name: str) -> tuple[TextIO, TextIO, str]:
    """Send this process' output, a library's too, to its log; gives the terminal's two streams and the log's path."""
    path = log_path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal, errors = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return terminal, errors, str(path)


def tell_agent(message: str, code: int) -> None:
    """Leave the cause of a failure, and the exit code that follows, where torch's elastic agent and the launcher look for it.

    Without a disk to leave it on, it goes to the terminal.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        told = {"message": message, "timestamp": int(time.time()), "code": code}
        try:
            Path(path).write_text(json.dumps(told), encoding="utf-8")
        except OSError:
            with contextlib.suppress(OSError):
                Path(path).unlink()  # what is half written
            os.write(TERMINAL, f"alrpc: {message}\n".encode())


def log_line(text: str) -> None:
    """Put a line into the log, if there is room."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def kill_beside(pid: int) -> None:
    """End another process of a run that is over, frozen as it may be. Only of `alrpc launch`: elsewhere the pid may be another's."""
    if "ALRPC_LAUNCHER" in os.environ:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def leave(code: int) -> None:
    """End at once: a broken connection must not keep a library's destructors waiting."""
    with contextlib.suppress(OSError):  # no room in the log
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
