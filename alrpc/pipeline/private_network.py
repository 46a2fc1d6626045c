"""A network namespace of a run's own, in which its processes on one machine meet: no other user of the machine can reach it.

Only the threads of the control plane and of gloo are in it. The user's code keeps the machine's network.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

NETWORK = "ALRPC_NETWORK"
"""The environment variable with the descriptors of the namespaces, which the forked processes of a run inherit: that of the network, and
that of the users if there is one."""
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

Result = TypeVar("Result")


def make_private_network() -> None:
    """Make a namespace for the processes that this one will fork, if the system allows it; this process stays outside.

    Whoever is not root needs a user namespace for it.
    """
    if not sys.platform.startswith("linux"):
        return
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # a namespace is made by entering it, and there is no way back
        try:
            if os.geteuid() != 0:
                _enter_user_namespace()
            _enter_network_namespace()
            os.write(ready[1], b".")
            os.close(done[1])
            os.read(done[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    if os.read(ready[0], 1):
        names = ("net",) if os.geteuid() == 0 else ("net", "user")
        with suppress(OSError):  # a system that lets it be made, but not be handed on
            os.environ[NETWORK] = " ".join(str(os.open(f"/proc/{child}/ns/{name}", os.O_RDONLY)) for name in names)
    for descriptor in (ready[0], *done):
        os.close(descriptor)
    os.waitpid(child, 0)


def enter_user_namespace() -> None:
    """In a forked process: enter the user namespace to which the network belongs, if there is one.

    The process has the same user and rights as before, and only loses those to become another user. From then on it cannot open
    descriptors of processes outside by their paths in /proc. Call this while the process has a single thread.
    """
    _, *users = os.environ.get(NETWORK, "").split() or [""]
    if users:
        _call("setns", int(users[0]), CLONE_NEWUSER)


def inside(function: Callable[[], Result]) -> Result:
    """Call a function in the run's network namespace, if it has one. What the function opens stays in it, and so do the threads that
    it starts."""
    if NETWORK not in os.environ:
        return function()

    def enter() -> Result:
        _call("setns", int(os.environ[NETWORK].split()[0]), CLONE_NEWNET)  # affects only the calling thread
        return function()

    with ThreadPoolExecutor(1, "inside") as thread:
        return thread.submit(enter).result()


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER)
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"{user} {user} 1")
    (own / "gid_map").write_text(f"{group} {group} 1")


def _enter_network_namespace() -> None:
    _call("unshare", CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library that returns 0, or -1 and an error number."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
