"""The process that started this one: when it has ended, this process ends too, so that no orphan is left.

A signal at the parent's death (Linux' PR_SET_PDEATHSIG) would not do: a forked process' parent is the fork server, and the system
takes the end of the thread that started a process for the end of its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import shutil
import threading
import time
from typing import NoReturn

PARENT_CHECK = 0.5  # seconds between two checks whether the parent still runs


class Parent:
    """The process that started this one, directly or through a fork server."""

    def __init__(self):
        self._direct = os.getppid()  # the fork server, where there is one
        started_by = multiprocessing.parent_process()
        self.pid = self._direct if started_by is None else started_by.pid
        self._gone = False
        self._descriptor: int | None = None
        try:
            self._descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._gone = True
        except (OSError, AttributeError):  # the system has no pidfd; then the pid is checked instead
            pass

    def is_gone(self) -> bool:
        """Whether the parent, or the fork server between it and this process, has ended."""
        return os.getppid() != self._direct or self.has_ended()

    def has_ended(self, timeout: float = 0) -> bool:
        """Whether the parent itself has ended, or ends within `timeout` seconds."""
        if self._gone:
            return True
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
        """End this process when the parent has ended for any reason. A thread watches, whatever the main thread does."""
        threading.Thread(target=self._watch, name="watch-parent", daemon=True).start()

    def _watch(self) -> None:
        while not self.is_gone():
            self.has_ended(PARENT_CHECK)
        self.end_without()

    def end_without(self) -> NoReturn:
        """End this process because its parent has ended, at once, and remove what multiprocessing would remove at an ordinary exit."""
        if folder := multiprocessing.current_process()._config.get(
            "tempdir"
        ):  # of the sockets by which readers hand over tensors
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)
