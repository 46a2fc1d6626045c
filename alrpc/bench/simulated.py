"""SIMULATED stages: they sleep instead of computing, so that what is measured is the engine alone.

A step of T ms sleeps a third of it as its forward pass, hands its packet on, and sleeps the rest as its backward pass. A sleep
ends at a moment, not after a duration, so that what the engine does in between is hidden only where real work would hide it.
"""

from __future__ import annotations

import ctypes
import time

import torch
from torch import Tensor, nn

from alrpc.bench.rounds import MeasuredStage
from alrpc.component import Classes
from alrpc.data.dataset import Dataset, Split
from alrpc.pipeline.packet import Packet

SAMPLES = 8  # in a packet
WIDTH = 4  # of the components, which are there but never run
FORWARD = 1 / 3  # of a step's sleep
PR_SET_TIMERSLACK = 29  # of Linux' prctl


def sleep_precisely() -> None:
    """Let this thread's sleeps end on time; Linux may otherwise add 50 µs to each."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


def sleep_until(moment: float) -> None:
    """Sleep until a moment of time.perf_counter."""
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(left)


class SimulatedStage(MeasuredStage):
    """A stage whose steps are sleeps of so many seconds; packets, markers and metrics are those of any other."""

    def __init__(self, seconds: float, *arguments):
        super().__init__(*arguments)
        self.seconds = seconds
        self.loss = torch.zeros(())

    def run(self, *arguments) -> None:
        sleep_precisely()
        super().run(*arguments)

    def learn(self, packet: Packet) -> None:
        begins = time.perf_counter()
        sleep_until(begins + FORWARD * self.seconds)
        self.hand_on(packet, packet.tensors)
        for meter in self.meters:
            meter.add(packet.step, self.loss, self.loss)
        sleep_until(begins + self.seconds)


class FirstNumbers(nn.Module):
    """(N, width) -> (N, WIDTH)"""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :WIDTH].clone()


def build(stages: int) -> list[nn.Module]:
    """A component for each stage, since a pipeline has one."""
    return [FirstNumbers() for _ in range(stages)]


def load(message_mb: float) -> Dataset:
    """One packet's worth of random numbers: x (SAMPLES, width) float32 of `message_mb` MB (2²⁰ bytes each)."""
    width = max(WIDTH, round(message_mb * (1 << 20) / 4 / SAMPLES))
    split = Split(torch.randn(SAMPLES, width), torch.arange(SAMPLES) % 2)
    return Dataset(split, split, Classes(2))
