"""Losses of a component, kept without making a GPU wait, and refused when they are not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alrpc.errors import UserError

READ_EVERY = 16  # steps between two transfers from a GPU


class NonFinite(UserError):
    """A loss or a parameter became infinite or not a number; training stops there."""


@dataclass
class LossMeter:
    """The losses of one component since they were last averaged."""

    number: int
    nonfinite: str = "stop"
    """stop, or skip: losses that are not finite do not count."""
    unread: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    steps: int = 0
    skipped: int = 0

    def add(self, step: int, associated: Tensor, autoencoder: Tensor, skipped: bool = False) -> None:
        """Keep the two losses of a step; on a GPU they are read every few steps, on a CPU at once.

        Raises:
            NonFinite: naming component, step and value.
        """
        self.skipped += skipped
        if associated.device.type == "cpu":
            self._count(step, associated.item(), autoencoder.item())
            return
        self.unread.append((step, associated, autoencoder))
        if len(self.unread) >= READ_EVERY:
            self.read()

    def read(self) -> None:
        """Read what is still on a GPU, in one transfer."""
        if not self.unread:
            return
        values = torch.stack([loss for _, *both in self.unread for loss in both]).tolist()
        for (step, *_), associated, autoencoder in zip(self.unread, values[::2], values[1::2], strict=True):
            self._count(step, associated, autoencoder)
        self.unread.clear()

    def _count(self, step: int, associated: float, autoencoder: float) -> None:
        if math.isfinite(associated + autoencoder):
            self.sums[0] += associated
            self.sums[1] += autoencoder
            self.steps += 1
        elif self.nonfinite == "stop":
            name, value = ("autoencoder", autoencoder) if math.isfinite(associated) else ("associated", associated)
            raise NonFinite(
                f"the {name} loss of component {self.number} is {value} at step {step}; "
                "a smaller train.lr or a train.clip_norm may help"
            )

    def event(self, epoch: int, step: int) -> dict | None:
        """The means since the last event, as a line for metrics.jsonl, and how many updates were skipped.

        None if there was no step since. Where no loss was finite, the means are None.
        """
        self.read()
        if not self.steps and not self.skipped:
            return None
        associated, autoencoder = (total / self.steps if self.steps else None for total in self.sums)
        skipped = {"skipped_updates": self.skipped} if self.skipped else {}
        self.sums, self.steps, self.skipped = [0.0, 0.0], 0, 0
        return {
            "event": "losses",
            "component": self.number,
            "epoch": epoch,
            "step": step,
            "associated_loss": associated,
            "autoencoder_loss": autoencoder,
            **skipped,
        }
