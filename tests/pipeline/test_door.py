"""Nobody can connect to a process of a run once the run's processes have met."""

import os
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
from conftest import LIMIT

from alrpc.pipeline.door import Intruder, door_closed_after

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the door closes on Linux only")
NOBODY = 65534


def listen() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.settimeout(20)
    listener.listen()
    return listener


def can_connect(listener: socket.socket) -> bool:
    with socket.socket() as other:
        other.settimeout(1)
        with suppress(TimeoutError):
            other.connect(listener.getsockname())
            return True
    return False


def test_a_closed_door_lets_nobody_in_and_keeps_those_who_are_inside():
    with listen() as own:
        with door_closed_after():
            listener = listen()
            inside = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        with listener, inside, accepted:
            assert not can_connect(listener)
            inside.sendall(b"still heard")
            assert accepted.recv(100) == b"still heard"
        assert can_connect(own)  # a socket of the user's own, from before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("inward", [True, False], ids=["connected to us", "we connected to it"])
def test_another_user_who_came_in_before_the_door_closed_is_noticed(inward):
    script = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
if sys.argv[2] == "connect":
    other = socket.socket()  # not create_connection, whose imports this user may not be able to read
    other.connect(("127.0.0.1", int(sys.argv[3])))
else:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    other, _ = listener.accept()
print("connected", flush=True)
sys.stdin.read()
"""
    with pytest.raises(Intruder, match=f"another user of this host .uid {NOBODY}. is connected"), door_closed_after():
        listener = listen()
        mode = ["connect", str(listener.getsockname()[1])] if inward else ["listen"]
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(NOBODY), *mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            connection = (
                listener.accept()[0] if inward else socket.create_connection(("127.0.0.1", int(other.stdout.readline())))
            )
            assert other.stdout.readline() == "connected\n"
        except BaseException:
            other.kill()
            raise
    other.communicate("", timeout=LIMIT)
    connection.close()
    listener.close()
