"""SIMULATED stages, which sleep instead of computing, so that only the engine is measured.

A step of T ms sleeps a third of T as its forward pass, sends its packet, and sleeps two thirds of T as its backward pass. The
engine's own work, within a step and between steps, comes on top, as it would with real work. The time by which a sleep is too
long is subtracted from the next sleep, because it is the clock's fault and not the engine's.
"""

from __future__ import annotations

import ctypes
import time

import torch
from torch import Tensor, nn

from alrpc.data.dataset import Dataset, Split
from alrpc.experiments.bench.rounds import MeasuredStage
from alrpc.objectives.targets import Classes
from alrpc.training.packet import Packet

SAMPLES = 8  # samples in a packet
WIDTH = 4  # width of the components, which exist but never run
FORWARD = 1 / 3  # share of a step's sleep
PR_SET_TIMERSLACK = 29  # an operation of Linux' prctl


class Sleeper:
    """Sleeps whose total is exact; for one thread."""

    def __init__(self):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # for this thread; by default Linux may add 50 µs to each sleep
        self.owed = 0.0

    def sleep(self, seconds: float) -> None:
        ends = time.perf_counter() + seconds - self.owed
        while (left := ends - time.perf_counter()) > 0:
            time.sleep(left)
        self.owed = time.perf_counter() - ends


class SimulatedStage(MeasuredStage):
    """A stage whose steps are sleeps of `seconds`; its packets, markers and metrics are those of any other stage."""

    most_held = 1  # all packets are alike

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
    """The first numbers of each sample: (N, width) -> (N, WIDTH)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :WIDTH].clone()


def build(stages: int) -> list[nn.Module]:
    """One block for each stage, since a stage needs a component."""
    return [FirstNumbers() for _ in range(stages)]


def load(message_mb: float) -> Dataset:
    """Random samples for one packet: x (SAMPLES, width) float32 of `message_mb` MB (2²⁰ bytes each)."""
    width = max(WIDTH, round(message_mb * (1 << 20) / 4 / SAMPLES))
    split = Split(torch.randn(SAMPLES, width), torch.arange(SAMPLES) % 2)
    return Dataset(split, split, Classes(2))
