"""Slow links for a measurement: each process on a host of its own, which a router joins to the others; see `router`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from alrpc.errors import UsageError
from alrpc.experiments.bench import router
from alrpc.pipeline.private_network import NETWORK


@dataclass(frozen=True)
class SlowLinks:
    """Hosts that are network namespaces of this machine, with slow links between any two of them."""

    pid: int
    """The router's process."""
    namespaces: tuple[int, ...]
    """Its descriptors of the hosts' namespaces."""

    def enter(self, rank: int) -> None:
        """In the process of a rank: let gloo and the control plane work on the rank's own host."""
        os.environ[NETWORK] = str(os.open(f"/proc/{self.pid}/fd/{self.namespaces[rank]}", os.O_RDONLY))
        for name in ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
            os.environ[name] = router.INTERFACE.decode()


@contextmanager
def slow_links(hosts: int, delay_ms: float, rate_mbit: float) -> Iterator[SlowLinks | None]:
    """Join hosts by links of `delay_ms` each way and `rate_mbit` Mbit/s, 0 for no limit; None where neither is asked for.

    Raises:
        UsageError: where this process may not make network namespaces or interfaces.
    """
    if not delay_ms and not rate_mbit:
        yield None
        return
    command = [sys.executable, "-I", router.__file__, str(hosts), str(delay_ms / 1000), str(rate_mbit * 1e6)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        found = process.stdout.readline().split()
        if not found:
            reason = process.stderr.read().strip()
            raise UsageError(f"--delay-ms, --rate-mbit: this needs Linux, root and /dev/net/tun: {reason}")
        try:
            yield SlowLinks(process.pid, tuple(map(int, found)))
        finally:
            process.stdin.close()  # which ends the router
