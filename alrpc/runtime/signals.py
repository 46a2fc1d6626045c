"""Signal handling of a run's processes: SIGTERM requests a checkpoint and the end, any other signal ends the process at once.

                    the first SIGTERM                  a second one, or the end of the grace period
alrpc train         stops after this micro-batch       raises Interrupted
alrpc launch        requests the end by a file         ends all processes, raises Interrupted
a run's process     calls `on_terminate`               ends
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

IGNORABLE = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that a process goes on ignoring if it was started so: by `nohup`, or by a shell in the background."""
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESTORED = (*HANDLED, signal.SIGQUIT, signal.SIGALRM)


def heeded(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those of some signals that this process was not started to ignore."""
    return [number for number in numbers if number not in IGNORABLE or signal.getsignal(number) is not signal.SIG_IGN]


class SignalThread:
    """A thread that handles this process' signals: the first SIGTERM requests the end of the run, other signals end the process.

    A thread waits for the signals, since the main thread may be inside a library, where no Python handler runs.
    """

    def __init__(self):
        self.terminal: TextIO | None = None
        """The terminal on which a live view may have hidden the cursor."""
        self.on_terminate: Callable[[], float] | None = None
        """Called on SIGTERM, and returns the seconds until the process must end. SIGTERM from the launcher ends the process at
        once, since the launcher only sends it when the run is over."""

    def start(self) -> None:
        """Start the thread; call this before any other thread is started."""
        self._handled = heeded(HANDLED)  # a signal that is blocked would be received even if it is ignored
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handled)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def _wait(self) -> None:
        received = signal.sigwaitinfo(self._handled)
        number, sender = received.si_signo, received.si_pid
        if number == signal.SIGTERM and self.on_terminate is not None and str(sender) != os.environ.get("ALRPC_LAUNCHER"):
            second = signal.sigtimedwait(self._handled, self.on_terminate())
            number = second.si_signo if second else number
        if self.terminal is not None and self.terminal.isatty():
            self.terminal.write("\x1b[?25h\n")
            self.terminal.flush()
        os._exit(128 + number)


@contextmanager
def terminate_twice(grace: float, first: Callable[[], None], then: Exception) -> Iterator[None]:
    """Call `first` on the first SIGTERM; on a second one, or `grace` seconds later, raise `then` in the main thread."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can install handlers
        yield
        return

    def end(*_) -> None:
        raise then

    def request_end(*_) -> None:
        signal.signal(signal.SIGTERM, end)
        signal.setitimer(signal.ITIMER_REAL, grace)
        first()

    before = signal.signal(signal.SIGTERM, request_end), signal.signal(signal.SIGALRM, end)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])


@contextmanager
def restored_signals() -> Iterator[None]:
    """Restore this process' signal handlers at the end of the context, since torch's elastic agent replaces them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in RESTORED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
