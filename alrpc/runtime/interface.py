"""The network interface of the processes of a run on several hosts: the one that leads to the coordinator's host."""

from __future__ import annotations

import array
import fcntl
import ipaddress
import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from alrpc.errors import UserError

VARIABLES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SIOCGIFCONF, IFREQ = 0x8912, 40  # of Linux; bytes of a struct ifreq


def choose_interface() -> None:
    """Let gloo, RPC and NCCL use the interface towards MASTER_ADDR, where the user has chosen none.

    Otherwise they take the address of the host's own name, which many a /etc/hosts gives as 127.0.1.1.

    Raises:
        UserError: when there is no way to that address, or only one that other hosts cannot take.
    """
    if not sys.platform.startswith("linux") or all(name in os.environ for name in VARIABLES[:2]):
        return
    master = os.environ["MASTER_ADDR"]
    remedy = f"or name this host's interface, such as eth0, in {' and '.join(VARIABLES[:2])}"
    try:
        address = address_towards(master)
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR: got {master}: {error.strerror}; give an address of node 0 that this host reaches, {remedy}"
        ) from error
    if ipaddress.ip_address(address).is_loopback and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise UserError(
            f"MASTER_ADDR: got {master}, which is {address} on host {socket.gethostname()}; give the address by which the other hosts "
            f"reach node 0, {remedy}"
        )
    interface = addresses().get(ipaddress.ip_address(address))
    if interface is None:
        raise UserError(
            f"MASTER_ADDR: got {master}: no interface of this host has the address {address}, which leads there; {remedy}"
        )
    for name in VARIABLES:
        os.environ.setdefault(name, interface)


def address_towards(host: str) -> str:
    """This host's address on the way to another one, by the routing table; nothing is sent.

    Raises:
        OSError: when the name is not known, or no way leads there.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return probe.getsockname()[0].partition("%")[0]


def addresses() -> dict[ipaddress.IPv4Address | ipaddress.IPv6Address, str]:
    """The addresses of this host, each with the name of its interface."""
    buffer = array.array("B", bytes(IFREQ * 1024))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        filled = fcntl.ioctl(any_socket, SIOCGIFCONF, struct.pack("iP", len(buffer), buffer.buffer_info()[0]))
    found = {}
    for start in range(0, struct.unpack("iP", filled)[0], IFREQ):
        entry = buffer[start : start + IFREQ].tobytes()
        found[ipaddress.ip_address(entry[20:24])] = entry[:16].rstrip(b"\0").decode()
    with suppress(OSError):  # the system has no IPv6
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            address, _, _, _, _, name = line.split()
            found[ipaddress.ip_address(bytes.fromhex(address))] = name
    return found
