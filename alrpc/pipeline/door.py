"""The door of a process: once all processes of a run have met, its listening sockets accept no more connections.

RPC's own protocol offers more than sealed pickles, such as torch's operators by name. So a connection counts as trusted only
if it was made before the door closed, and, on this host, with a process of this user.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SO_ATTACH_FILTER = 26
DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""The classic BPF program `ret #0`, which drops each packet. Connections that are established already have no filter."""
ESTABLISHED = "01"


class Intruder(RuntimeError):
    """A process of another user of this host is connected to the run."""


@contextmanager
def door_closed_after() -> Iterator[None]:
    """Let no further connection in to the sockets that begin to listen in this context. On other systems than Linux this does nothing.

    Raises:
        Intruder: when a connection made in this context is with a process of another user of this host, other than root.
    """
    before = _sockets()
    yield
    made = {inode: descriptor for inode, descriptor in _sockets().items() if inode not in before}
    for descriptor in made.values():
        with socket.socket(fileno=os.dup(descriptor)) as each:
            if each.family != socket.AF_UNIX and each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                drop_all(each)
    for user in _peers(set(made)):
        if user not in (0, os.geteuid()):
            raise Intruder(f"a process of another user of this host (uid {user}) is connected to this run")


def drop_all(listener: socket.socket) -> None:
    """Let a listening socket drop everything that comes for it, so that nobody can connect to it."""
    program = ctypes.create_string_buffer(DROP_ALL, len(DROP_ALL))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))


def _sockets() -> dict[str, int]:
    """The sockets of this process: inode → descriptor."""
    found: dict[str, int] = {}
    if sys.platform.startswith("linux"):
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # another thread has closed it
                kind, _, inode = str(entry.readlink()).partition(":")
                if kind == "socket":
                    found[inode.strip("[]")] = int(entry.name)
    return found


def _peers(inodes: set[str]) -> set[int]:
    """The users at the other ends of connections, as far as these are on this host."""
    users, ends = {}, []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
                _, local, remote, state, _, _, _, user, _, inode, *_ = line.split()
                if state == ESTABLISHED:
                    users[local, remote] = int(user)
                    ends += [(remote, local)] if inode in inodes else []
    return {users[end] for end in ends if end in users}
