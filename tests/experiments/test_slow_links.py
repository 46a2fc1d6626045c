"""The slow links of `alrpc bench hops --delay-ms`: hosts of their own, between which packets take their time."""

import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import LIMIT

from alrpc.experiments.bench.slow_links import slow_links
from alrpc.pipeline.private_network import inside

DELAY = 40  # milliseconds each way
ADDRESS = "10.77.0.2"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux can make hosts of their own"
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("ALRPC_NETWORK", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")


def listen() -> socket.socket:
    return socket.create_server((ADDRESS, 0))


def exchange(server: socket.socket, links, size: int) -> float:
    """Seconds until a message from host 1 has been answered by host 2."""
    with ThreadPoolExecutor(1) as other, server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                left = size
                while left:
                    left -= len(connection.recv(left))
                connection.sendall(b".")

        answered = other.submit(answer)
        links.enter(0)
        with inside(lambda: socket.create_connection(server.getsockname(), timeout=LIMIT)) as client:
            began = time.perf_counter()
            client.sendall(bytes(size))
            assert client.recv(1) == b"."
            seconds = time.perf_counter() - began
        answered.result(60)
    return seconds


def test_a_message_and_its_answer_take_the_delay_each_way():
    with slow_links(2, DELAY, 0) as links:
        links.enter(1)
        assert exchange(inside(listen), links, 1) >= 2 * DELAY / 1000


def test_a_link_passes_no_more_than_its_rate():
    with slow_links(2, 0, 8) as links:  # a megabyte a second
        links.enter(1)
        assert exchange(inside(listen), links, 200_000) >= 0.2


def test_the_router_ends_with_the_measurement():
    with slow_links(2, DELAY, 0) as links:
        assert Path(f"/proc/{links.pid}").exists()
    assert not Path(f"/proc/{links.pid}").exists()
    with slow_links(2, 0, 0) as links:
        assert links is None
