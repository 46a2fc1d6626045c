"""multiprocessing's fork server, started such that neither it nor a file of it outlives the processes that use it."""

from __future__ import annotations

import atexit
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, process, util

OWN_DESCRIPTORS = "/proc/self/fd/"
LONGEST_TEMPDIR = 70  # bytes; the system allows 107 for the path of a socket, of which multiprocessing's names take 33

_server = forkserver._forkserver  # multiprocessing has no public function for what is needed here


def ensure_server() -> None:
    """Start the fork server, unless it is running, and stop it at this process' exit. This does not wait for its imports.

    multiprocessing would keep the server's socket in a directory that remains if this process is killed. Here the socket loses its
    name at once, and is reached by a descriptor of its file from then on.
    """
    before = _server._forkserver_pid
    with socket_directory():
        forkserver.ensure_running()
        if _server._forkserver_pid != before:
            descriptor = os.open(_server._forkserver_address, os.O_PATH)
            _server._forkserver_address = f"{OWN_DESCRIPTORS}{descriptor}"
            atexit.register(stop_server, _server._forkserver_pid)


def stop_server(pid: int) -> None:
    """End a fork server, once no process that it forked is needed, and wait for it, so that no process outlives a command.

    It is killed, since it may still be importing, or be about to fork what nobody waits for any more. One that somebody else
    has started for processes of their own has another pid, and stays.
    """
    if _server._forkserver_pid == pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        _forget_server()


def _forget_server() -> None:
    """Let the next process be started by a server of its own; a parent's fork server is not the child of a forked process."""
    if _server._forkserver_alive_fd is not None:
        os.close(_server._forkserver_alive_fd)
    if (address := _server._forkserver_address or "").startswith(OWN_DESCRIPTORS):
        os.close(int(address.removeprefix(OWN_DESCRIPTORS)))
    _server._forkserver_pid = _server._forkserver_alive_fd = _server._forkserver_address = None


os.register_at_fork(after_in_child=_forget_server)


def make_socket_directory() -> None:
    """Make the directory in which multiprocessing puts this process' sockets, and which it removes at the process' exit.

    It lies in /tmp where TMPDIR is too long; multiprocessing would make one in TMPDIR, and could not make a socket in it.
    """
    before = tempfile.gettempdir()
    tempfile.tempdir = short_directory()
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = before


def short_directory() -> str:
    """A directory for temporary files whose path leaves room for the name of a socket."""
    place = tempfile.gettempdir()
    return place if len(os.fsencode(place)) <= LONGEST_TEMPDIR else "/tmp"


@contextmanager
def socket_directory() -> Iterator[None]:
    """Let multiprocessing put a socket into a directory that is removed at the end of the context."""
    settings = process.current_process()._config
    before = settings.get("tempdir")
    with tempfile.TemporaryDirectory(prefix="alrpc-", dir=short_directory()) as folder:
        settings["tempdir"] = folder
        try:
            yield
        finally:
            settings["tempdir"] = before
