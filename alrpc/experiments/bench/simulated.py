"""SIMULATED stages: they sleep instead of computing, so that what is measured is the engine alone.

A step of T ms sleeps a third of it as its forward pass, hands its packet on, and sleeps two thirds as its backward pass. What the
engine does between the two, and between two steps, comes on top, as it would with real work. What a sleep overshoots is taken
off the next one: that is the clock's and not the engine's.
"""

from __future__ import annotations

import ctypes
import time

import torch
from torch import Tensor, nn

from alrpc.data.dataset import Dataset, Split
from alrpc.experiments.bench.rounds import MeasuredStage
from alrpc.objectives.base import Classes
from alrpc.training.packet import Packet

SAMPLES = 8  # in a packet
WIDTH = 4  # of the components, which are there but never run
FORWARD = 1 / 3  # of a step's sleep
PR_SET_TIMERSLACK = 29  # of Linux' prctl


class Sleeper:
    """Sleeps that add up exactly; for one thread."""

    def __init__(self):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # of this thread; Linux may otherwise add 50 µs to each sleep
        self.owed = 0.0

    def sleep(self, seconds: float) -> None:
        ends = time.perf_counter() + seconds - self.owed
        while (left := ends - time.perf_counter()) > 0:
            time.sleep(left)
        self.owed = time.perf_counter() - ends


class SimulatedStage(MeasuredStage):
    """A stage whose steps are sleeps of so many seconds; packets, markers and metrics are those of any other."""

    most_held = 1  # they are all alike

    def __init__(self, seconds: float, *arguments, **callbacks):
        super().__init__(*arguments, **callbacks)
        self.seconds = seconds
        self.sleeper = Sleeper()
        self.loss = torch.zeros(())

    def train_components(self, packet: Packet) -> None:
        self.sleeper.sleep(FORWARD * self.seconds)
        self.send(packet)
        for meter in self.meters:
            meter.add(packet.step, (self.loss,) * len(meter.names))
        self.sleeper.sleep((1 - FORWARD) * self.seconds)


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
