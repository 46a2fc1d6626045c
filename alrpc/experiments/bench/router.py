"""A script: hosts of their own, as network namespaces of this machine, joined by a router in user space whose links are slow.

Usage: router.py HOSTS DELAY RATE, with DELAY in seconds each way and RATE in bits a second of each link, 0 for no limit. It prints the
descriptors of the namespaces, then forwards until its standard input ends. It imports the standard library alone, so that it runs at
once. Linux' own netem would do the same within the kernel, but many kernels are built without it.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import socket
import struct
import sys
import time
from collections import defaultdict
from itertools import count
from pathlib import Path

INTERFACE = b"alrpc0"  # of every host, beside its loopback
PREFIX = b"\x0a\x4d"  # 10.77.0.0/16; the last two bytes are the host's number, from 1
MTU = 65_000  # bytes; large packets, since each costs the router some microseconds
BURST = 32  # packets read from one host before another one's turn
BUFFERS = "4096 67108864 134217728"  # bytes of a connection's buffers: a window of packets must fit into what is under way
CONGESTION = "reno"  # which every kernel has and lets a namespace choose; BBR stops for 200 ms every ten seconds, to probe
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI, IFF_UP = 0x400454CA, 0x0001, 0x1000, 0x1
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU = 0x8914, 0x8916, 0x891C, 0x8922


def make_host(number: int) -> tuple[int, int]:
    """Make a namespace with an interface; returns the descriptors of the namespace and of the interface's packets."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", INTERFACE, IFF_TUN | IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:

        def of_interface(request: int, layout: str, *values: bytes | int, name: bytes = INTERFACE) -> None:
            fcntl.ioctl(any_socket, request, struct.pack(f"16s{layout}", name, *values).ljust(40, b"\0"))

        of_interface(SIOCSIFADDR, "HH4s", socket.AF_INET, 0, PREFIX + number.to_bytes(2))
        of_interface(SIOCSIFNETMASK, "HH4s", socket.AF_INET, 0, b"\xff\xff\0\0")
        of_interface(SIOCSIFMTU, "i", MTU)
        of_interface(SIOCSIFFLAGS, "H", IFF_UP)
        of_interface(SIOCSIFFLAGS, "H", IFF_UP, name=b"lo")
    for name, value in (
        ("tcp_rmem", BUFFERS),
        ("tcp_wmem", BUFFERS),
        ("tcp_slow_start_after_idle", "0"),
        ("tcp_congestion_control", CONGESTION),
    ):
        Path("/proc/sys/net/ipv4", name).write_text(value)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY), tun


def route(tuns: list[int], delay: float, rate: float) -> None:
    """Forward packets between the hosts until standard input ends, each `delay` seconds after it has passed its link."""
    under_way: list[tuple[float, int, int, bytes]] = []  # when each arrives, its number, its goal, and itself
    free: dict[tuple[int, int], float] = defaultdict(float)  # when the link between two hosts has passed all that it was given
    numbers = count()
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([sys.stdin, *tuns], [], [], wait)
        if sys.stdin in readable:
            return
        for source in readable:
            for _ in range(BURST):
                try:
                    packet = os.read(source, MTU)
                except BlockingIOError:
                    break
                goal = int.from_bytes(packet[18:20]) - 1  # of the destination's address
                if packet[0] >> 4 != 4 or packet[16:18] != PREFIX or not 0 <= goal < len(tuns):
                    continue  # neither IPv4 nor for a host
                link = source, tuns[goal]
                passed = max(time.monotonic(), free[link]) + (8 * len(packet) / rate if rate else 0.0)
                free[link] = passed
                heapq.heappush(under_way, (passed + delay, next(numbers), tuns[goal], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            os.write(under_way[0][2], under_way[0][3])
            heapq.heappop(under_way)


def main() -> None:
    hosts, delay, rate = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    namespaces, tuns = zip(*(make_host(number) for number in range(1, hosts + 1)), strict=True)
    print(*namespaces, flush=True)
    route(list(tuns), delay, rate)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")
