"""How a run's processes take signals: SIGTERM asks for a checkpoint and the end, anything else ends at once.

                    the first SIGTERM                  a second one, or the end of the grace period
alrpc train         stop after this micro-batch        Interrupted
alrpc launch        ask the coordinator, by a file     ends all processes, Interrupted
a run's process     what `on_terminate` says           ends
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESTORED = (*HANDLED, signal.SIGQUIT, signal.SIGALRM)


class SignalThread:
    """Ends this process on a signal as any process, but lets SIGTERM ask for the end first.

    A thread waits for them, since the main one may be inside a library, where no Python handler runs.
    """

    def __init__(self):
        self.terminal: TextIO | None = None
        """Where a live view may have hidden the cursor."""
        self.on_terminate: Callable[[], float] | None = None
        """Called for SIGTERM, unless it is from the launcher, which sends it when there is nothing left to wait for; gives the
        seconds that are left."""

    def start(self) -> None:
        """To be called before any other thread begins."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def _wait(self) -> None:
        received = signal.sigwaitinfo(HANDLED)
        number, sender = received.si_signo, received.si_pid
        if number == signal.SIGTERM and self.on_terminate is not None and str(sender) != os.environ.get("ALRPC_LAUNCHER"):
            again = signal.sigtimedwait(HANDLED, self.on_terminate())
            number = again.si_signo if again else number
        if self.terminal is not None and self.terminal.isatty():
            self.terminal.write("\x1b[?25h\n")
            self.terminal.flush()
        os._exit(128 + number)


@contextmanager
def terminate_twice(grace: float, first: Callable[[], None], then: Exception) -> Iterator[None]:
    """Let the first SIGTERM call `first`; a second one, or the end of so many seconds, raises `then` in the main thread."""
    if threading.current_thread() is not threading.main_thread():  # which alone can have handlers
        yield
        return

    def end(*_) -> None:
        raise then

    def ask(*_) -> None:
        signal.signal(signal.SIGTERM, end)
        signal.setitimer(signal.ITIMER_REAL, grace)
        first()

    before = signal.signal(signal.SIGTERM, ask), signal.signal(signal.SIGALRM, end)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])


@contextmanager
def restored_signals() -> Iterator[None]:
    """Put this process' signal handlers back afterwards: torch's elastic agent replaces them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in RESTORED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
