"""The four links of a process in a pipeline whose activations go forward and whose gradients come back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import distributed

from alrpc.pipeline.groups import open_groups
from alrpc.pipeline.link import Link, Receiver, Sender
from alrpc.pipeline.wire import CPU
from alrpc.timing import Timing
from alrpc.training.packet import Kind, Packet


@dataclass(frozen=True)
class Neighbours:
    """A process' links to the one before it and to the one behind it; None past the ends of the pipeline."""

    activations: Iterator[Packet] | None = None
    """From the process before."""
    forward: Sender | None = None
    gradients: Iterator[Packet] | None = None
    """From the process behind."""
    backward: Sender | None = None


def connect(device: torch.device) -> Neighbours:
    """Open the links of this process of the default process group; called in all of them.

    A link's window is the number of micro-batches in flight at the one of its two processes that comes first, so that no process
    ever waits to send.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    pairs = [(first, first + 1) for first in range(world - 1)]
    groups = open_groups(rank, [*pairs, *((goal, origin) for origin, goal in pairs)], device) if device.type == "cuda" else {}

    def link(origin: int, goal: int) -> Link:
        group = groups.get((origin, goal))
        return Link(origin + goal - rank, CPU if group is None else device, group)

    def receive(origin: int) -> Iterator[Packet]:
        return iter(Receiver(link(origin, rank), world - min(origin, rank), device, Timing()))

    def send(goal: int) -> Sender:
        return Sender(link(rank, goal), world - min(rank, goal), device=device)

    before, behind = rank > 0, rank < world - 1
    return Neighbours(
        activations=receive(rank - 1) if before else None,
        forward=send(rank + 1) if behind else None,
        gradients=receive(rank + 1) if behind else None,
        backward=send(rank - 1) if before else None,
    )


def disconnect(neighbours: Neighbours) -> None:
    """End the links, once every packet has been taken; called in all processes."""
    senders = [sender for sender in (neighbours.forward, neighbours.backward) if sender is not None]
    for sender in senders:
        sender.send(Packet(Kind.END, 0, 0))
    for packets in (neighbours.activations, neighbours.gradients):
        for _ in packets or ():
            pass
    for sender in senders:
        sender.drain()
